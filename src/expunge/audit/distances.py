"""How far the unlearned model is from retraining: in what it says, and in its weights."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit.decision import Spread
from expunge.audit.evidence import Answers, LayerDistance
from expunge.audit.portrait import Portrait
from expunge.audit.statistics import Quantity, mean_of, product_of, statistic_of
from expunge.tasks import Task


def mean_divergence(task: Task, outputs: Tensor, references: Sequence[Tensor]) -> NDArray[np.float64]:
    """Divergence from each reference, averaged over the references: (examples,).

    An average of distances to single oracles, rather than the distance to their average, so that an oracle measured
    against the others and the unlearned model measured against all are on the same scale whatever their number.
    """
    return torch.stack([task.divergence(outputs, reference) for reference in references]).mean(0).double().numpy()


def tug_of_war(portrait: Portrait, references: Sequence[Portrait], seed: int) -> Quantity:
    """Product over the sets of 1 - |quality - mean quality of the references|; 1 is equal to retraining.

    Source: Zhao et al. 2024 (arXiv 2406.01257), equation 1.
    """
    return product_of(
        [
            statistic_of(
                np.stack([seen.headline, *(reference.sets[name].headline for reference in references)]),
                _closeness,
                seed,
            )
            for name, seen in portrait.sets.items()
        ]
    )


def answers(task: Task, unlearned: Tensor, original: Tensor, oracles: Sequence[Tensor], seed: int) -> Answers | None:
    """Mean amount of each kind of answer, or None where the task has no kinds; `seed` is that of the bootstrap."""
    kinds = list(task.answers(unlearned[:1]))
    if not kinds:
        return None

    def means(outputs: Tensor) -> list[float]:
        return [float(amount.mean()) for amount in task.answers(outputs).values()]

    return Answers(
        kinds=kinds,
        unlearned=[
            mean_of(amount.double().numpy(), seed, share=False).estimate()
            for amount in task.answers(unlearned).values()
        ],
        original=means(original),
        oracles=[means(outputs) for outputs in oracles],
    )


def layer_distances(unlearned: nn.Module, original: nn.Module, oracles: Sequence[nn.Module]) -> list[LayerDistance]:
    """For each layer, the norm of the difference to the original's parameters over the norm of the original's."""
    names = [name for name, _ in unlearned.named_parameters()]  # of weights that it shares, one
    ours, *others = (_by_layer(model, original, names) for model in (unlearned, *oracles))
    return [_layer_distance(layer, distance, [other[layer] for other in others]) for layer, distance in ours.items()]


def _layer_distance(layer: str, unlearned: float, oracles: list[float]) -> LayerDistance:
    return LayerDistance(layer=layer, unlearned=unlearned, oracles=oracles, band=Spread(oracles).band((0.0, np.inf)))


def _closeness(means: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 - np.abs(means[0] - means[1:].mean(0))


def _by_layer(model: nn.Module, original: nn.Module, names: Sequence[str]) -> dict[str, float]:
    squares: dict[str, tuple[float, float]] = {}
    own, theirs = (dict(each.named_parameters(remove_duplicate=False)) for each in (model, original))
    for name in names:
        layer = name.rpartition(".")[0] or name
        start = theirs[name].detach().cpu().double()
        difference = float((own[name].detach().cpu().double() - start).square().sum())
        before = squares.get(layer, (0.0, 0.0))
        squares[layer] = before[0] + difference, before[1] + float(start.square().sum())
    return {layer: float(np.sqrt(moved / max(norm, 1e-30))) for layer, (moved, norm) in squares.items()}
