"""How large is epsilon at least, as measured: repeated deletions beside repeated retraining with the same noise.

An adversary who knows the weights of both mechanisms before noise looks at a model and guesses which made it. On one
half of the pairs the statistic (the projection on the line between the two, or the distance from the retrained
weights), its threshold, its side and the direction of the ratio are chosen; on the other half the rates are counted.
With Clopper-Pearson limits, 95 % together, epsilon is at least ln((TPR - delta) / FPR). Run with
`make bench BENCH=epsilon_lower_bound`.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

import expunge
from _results import Results, size_from_arguments
from expunge import Certificate, Execution, HeadOptimum, NewtonRemoval, Problem
from expunge.cli.hospital import training_data, untrained
from expunge.states import CurvatureState
from expunge.states.head import head_of, head_weights

PAIRS = {"quick": 500, "full": 4000}
PATIENTS = {"quick": 4, "full": 10}
L2 = 0.003
TASK = expunge.Classification(2)
QUIET = Execution(progress=False)
LIMIT = 0.975
"""Of each of the two rates, so that both hold together with 95 %."""


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    pairs, patients = PAIRS[size.name], PATIENTS[size.name]
    torch.set_num_threads(1)
    results = Results("epsilon_lower_bound", size, {"pairs": pairs, "patients": patients, "l2": L2})
    cells = [results.cell(f"patient {rank}", lambda rank=rank: examine(rank, pairs)) for rank in range(patients)]
    report(results, cells)


def examine(rank: int, pairs: int) -> dict[str, Any]:
    """Delete the patient whom the model fits worst but for `rank` others, as often as there are pairs."""
    data = training_data()
    recipe = HeadOptimum(untrained, TASK, L2)
    model = recipe(data, 0)
    losses = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1], reduction="none")
    patient = int(losses.detach().argsort(descending=True)[rank])
    parts = expunge.split(data, indices=[patient])
    state = expunge.record(model, TASK, data, l2=L2, feature_norm=1.0)
    problem = Problem(model, TASK, parts.forget, state=state)
    removals = [expunge.unlearn(problem, NewtonRemoval(), seed=seed, execution=QUIET) for seed in range(pairs)]
    first = removals[0]
    certificate = cast(Certificate, first.record.certificate)
    noisy = recipe.with_noise(certificate.sigma)
    deleted = torch.stack([weights(each.model) for each in removals])
    retrained = torch.stack([weights(noisy(parts.retain, seed)) for seed in range(pairs)])
    left = cast(CurvatureState, first.state)
    start, target = (left.weights + left.newton_step().step).flatten(), weights(recipe(parts.retain, 0))
    bound, sigma = certificate.sensitivity, certificate.sigma
    worst = target + bound * (start - target) / (start - target).norm()
    draw = noise_like(deleted, rank)
    mechanisms: dict[str, tuple[Tensor, Tensor]] = {
        "as certified": (start, deleted),
        "as far off as the certificate allows": (worst, worst + sigma * draw),
        "wrong: no noise": (start, start.expand_as(deleted)),
        "wrong: sigma / 10": (start, start + sigma / 10 * draw),
        "wrong: noise on the original": (weights(model), weights(model) + sigma * draw),
    }
    return {
        "epsilon": certificate.epsilon,
        "delta": certificate.delta,
        "sigma": sigma,
        "bound": bound,
        "distance": float((start - target).norm()),
        "mechanisms": {
            name: lower_bound(made, retrained, middle, target, certificate.delta)
            for name, (middle, made) in mechanisms.items()
        },
    }


def lower_bound(made: Tensor, retrained: Tensor, middle: Tensor, target: Tensor, delta: float) -> dict[str, Any]:
    """Epsilon at least, from samples (pairs, weights) of the mechanism and of its reference."""
    half = len(made) // 2
    scores = {
        (name, swapped): (score(retrained), score(made)) if swapped else (score(made), score(retrained))
        for name, score in statistics_of(middle, target).items()
        for swapped in (False, True)
    }
    _, chosen, threshold, above = max(
        (
            (limits(*counts(one[:half], other[:half], threshold, above), delta), key, threshold, above)
            for key, (one, other) in scores.items()
            for threshold in torch.cat([one[:half], other[:half]]).tolist()
            for above in (True, False)
        ),
        key=lambda each: each[0],
    )
    one, other = scores[chosen]
    hits, alarms, total = counts(one[half:], other[half:], threshold, above)
    return {
        "epsilon at least": limits(hits, alarms, total, delta),
        "true positives": hits,
        "false positives": alarms,
        "of": total,
        "most that could be shown": limits(total, 0, total, delta),
        "statistic": chosen[0],
        "likelier under retraining": chosen[1],
    }


def statistics_of(middle: Tensor, target: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the adversary may look at."""
    line = (middle - target) / (middle - target).norm()
    return {"projection": lambda models: models @ line, "distance": lambda models: (models - target).norm(dim=1)}


def counts(made: Tensor, retrained: Tensor, threshold: float, above: bool) -> tuple[int, int, int]:
    """Hits among the mechanism's models, alarms among the reference's, and how many there are of each."""
    chosen = [(scores >= threshold) if above else (scores <= threshold) for scores in (made, retrained)]
    return int(chosen[0].sum()), int(chosen[1].sum()), len(made)


def limits(hits: int, alarms: int, total: int, delta: float) -> float:
    """Epsilon at least, by Clopper-Pearson limits of the two rates."""
    low = float(stats.beta.ppf(1 - LIMIT, hits, total - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(LIMIT, alarms + 1, total - alarms)) if alarms < total else 1.0
    return max(math.log((low - delta) / high), 0.0) if low > delta else 0.0


def noise_like(models: Tensor, seed: int) -> Tensor:
    """Standard Gaussian noise for the mechanisms that the library does not have."""
    return torch.randn(models.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=models.dtype)


def weights(model: nn.Module) -> Tensor:
    """All weights of the head: (classes * width,)."""
    return head_weights(head_of(model, TASK)).flatten()


def report(results: Results, cells: list[dict[str, Any]]) -> None:
    """Print the bounds a mechanism and draw them beside the certified epsilon."""
    names = list(cells[0]["mechanisms"])
    print("| mechanism | epsilon at least, each patient | most that could be shown | above the certified |")
    print("| --- " * 4 + "|")
    for name in names:
        found = [cell["mechanisms"][name]["epsilon at least"] for cell in cells]
        most = cells[0]["mechanisms"][name]["most that could be shown"]
        above = sum(value > cell["epsilon"] for value, cell in zip(found, cells, strict=True))
        print(f"| {name} | {', '.join(f'{value:.2f}' for value in found)} | {most:.2f} | {above} of {len(cells)} |")
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    panel = figure.subplots()
    for row, name in enumerate(names):
        values = [cell["mechanisms"][name]["epsilon at least"] for cell in cells]
        panel.plot(values, [row] * len(values), "o", color="C3" if name.startswith("wrong") else "C0", alpha=0.6)
    panel.axvline(cells[0]["epsilon"], color="grey", linewidth=1)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel("epsilon at least, as measured (line: certified)")
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
