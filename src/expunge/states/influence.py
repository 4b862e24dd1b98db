"""How much single examples have to do with others: influence scores from a gradient log, or without one."""

import importlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import MapDataset, subset
from expunge.errors import ConvergenceError, SettingError
from expunge.states.gradient_capture import Capture, Part
from expunge.states.gradient_layers import Slot, choose, slots_of
from expunge.states.gradient_log import Chosen, GradientLog
from expunge.training import Run, over_batches
from expunge.training.batches import in_order

Gradient = Mapping[nn.Parameter, Tensor]
"""A gradient by parameter."""


class Influence(StrEnum):
    """Kinds of score, of an example on a set of others (the query); larger: the example lowers their loss more.

    `gradient` is g · q of the example's gradient and the query's mean gradient (TracIn, Pruthi et al. 2020, arXiv
    2002.08484); from a log, g is the gradient at the weights that it was used on, summed over epochs. `activation` is
    the scalar product of what the last layer sees of both. `hvp` is g · H q and `inverse-hvp` g · (H + λ)⁻¹ q (Koh and
    Liang 2017, arXiv 1703.04730) with H the curvature of the mean loss of the query and some candidates.
    """

    GRADIENT = "gradient"
    ACTIVATION = "activation"
    HVP = "hvp"
    INVERSE_HVP = "inverse-hvp"


def influence(
    model: nn.Module,
    query: MapDataset,
    candidates: MapDataset,
    run: Run,
    *,
    kind: Influence = Influence.GRADIENT,
    log: GradientLog | None = None,
    epochs: Chosen = "all",
    layers: Sequence[str] = ("all",),
    damping: float = 0.1,
    iterations: int = 100,
    tolerance: float = 0.01,
    curvature_examples: int = 64,
    batch_size: int = 16,
) -> Tensor:
    """Score each candidate by what it has to do with the query.

    Args:
        model: Where gradients are taken; in evaluation mode.
        query: Such as the forget set.
        candidates: Such as the retain set.
        run: Task and device.
        kind: Of score.
        log: Take the candidates' gradients from here, instead of at the model as it is.
        epochs: Of the log.
        layers: Parameters that count, by pattern.
        damping: λ of `inverse-hvp`. Default ours.
        iterations: Most products with H for `inverse-hvp`. Default ours.
        tolerance: Largest residual for `inverse-hvp`, of the norm of q. Default ours.
        curvature_examples: Most candidates whose loss enters H, the first ones.
        batch_size: Examples a pass.

    Returns:
        (candidates,) float64.

    Raises:
        SettingError: A setting is out of range, a layer is not there, or dattri is not installed and is needed.
        UnknownRowError: The log is of a training set without one of the candidates.
        StateError: The log holds no entry of a candidate.
        ConvergenceError: The inverse was not found to the tolerance.
    """
    if kind not in list(Influence):
        raise SettingError(f"kind must be one of {', '.join(Influence)}, not {kind!r}")
    for name, value in (
        ("damping", damping),
        ("iterations", iterations),
        ("tolerance", tolerance),
        ("batch_size", batch_size),
    ):
        if not value > 0:
            raise SettingError(f"{name} must be above 0, not {value!r}")
    if kind is Influence.ACTIVATION:
        seen = [
            torch.cat(over_batches(run, model, each, run.task.features, batch_size)).double()
            for each in (query, candidates)
        ]
        return seen[1] @ seen[0].mean(0)
    slots = choose(slots_of(model), layers) if log is None else log.choose(layers)
    direction = loss_gradient(run, model, query, slots, batch_size)
    if kind is not Influence.GRADIENT:
        several = [query, subset(candidates, torch.arange(min(curvature_examples, len(candidates))))]
        turned = _Curvature(run, model, several, direction, batch_size)
        direction = (
            turned.product() if kind is Influence.HVP else turned.inverse_product(damping, iterations, tolerance)
        )
    if log is None:
        return _fresh_scores(run, model, candidates, slots, direction, batch_size)
    return logged_scores(log, log.ids(run.task, candidates), model, slots, direction, epochs)


def logged_scores(
    log: GradientLog,
    ids: Iterable[int],
    model: nn.Module,
    slots: Sequence[Slot],
    direction: Gradient,
    epochs: Chosen = "all",
) -> Tensor:
    """Scalar product of each example's logged gradient, summed over epochs, with a direction: (ids,) float64."""
    return torch.tensor(
        [
            sum(_dot(log.gradient(entry, slots), model, direction) for entry in log.entries(example, epochs))
            for example in ids
        ],
        dtype=torch.double,
    )


def loss_gradient(
    run: Run, model: nn.Module, dataset: MapDataset, slots: Iterable[Slot], batch_size: int = 16
) -> dict[nn.Parameter, Tensor]:
    """Gradient of the mean loss of a dataset, in evaluation mode."""
    wanted = list(dict.fromkeys(slot.of(model) for slot in slots))
    total = [torch.zeros_like(parameter) for parameter in wanted]
    with _evaluating(run, model):
        for batch in in_order(run.task, dataset, batch_size):
            losses = run.task.losses(model, run.to_device(batch))
            for sums, each in zip(total, torch.autograd.grad(losses.sum(), wanted), strict=True):
                sums += each
    return {parameter: sums / len(dataset) for parameter, sums in zip(wanted, total, strict=True)}


class _Curvature:
    """Products with the Hessian of a mean loss, by dattri."""

    def __init__(
        self, run: Run, model: nn.Module, datasets: Sequence[MapDataset], direction: Gradient, batch_size: int
    ) -> None:
        self.run, self.model, self.batch_size = run, model, batch_size
        self.datasets, self.examples = datasets, sum(len(each) for each in datasets)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameters = list(direction)
        self.names = [names[parameter] for parameter in self.parameters]
        self.vector = torch.cat([direction[parameter].flatten() for parameter in self.parameters])
        self.point = torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def product(self) -> Gradient:
        """H q."""
        return self._solve(lambda hessian: hessian.hvp_at_x(self._loss, (self.point,), 0)(self.vector))

    def inverse_product(self, damping: float, iterations: int, tolerance: float) -> Gradient:
        """(H + λ)⁻¹ q, by the method of minimal residuals: H need not be positive."""

        def solve(hessian: Any) -> Tensor:
            multiply = hessian.hvp_at_x(self._loss, (self.point,), 0, regularization=damping)
            size = len(self.vector)

            def apply(vector: NDArray[np.float32]) -> NDArray[np.float32]:
                return multiply(torch.from_numpy(vector).to(self.vector)).detach().cpu().numpy()

            system = cast(Any, LinearOperator)((size, size), matvec=apply, dtype=np.float32)
            wanted = self.vector.cpu().numpy()
            found, _ = cast(Any, minres)(system, wanted, rtol=1e-5, maxiter=iterations)
            error = float(np.linalg.norm(apply(found.astype(np.float32)) - wanted) / np.linalg.norm(wanted))
            if not error <= tolerance:
                raise ConvergenceError(
                    f"after {iterations} iterations the system of the inverse Hessian is solved to {error:.2g} of "
                    f"the right side, where {tolerance:g} was asked for; raise iterations, damping or tolerance, or "
                    "choose fewer layers"
                )
            return torch.from_numpy(found).to(self.vector)

        return self._solve(solve)

    def _solve(self, apply: Callable[[Any], Tensor]) -> Gradient:
        # The kernels of attention that are fast have no second derivative.
        with _evaluating(self.run, self.model), sdpa_kernel(SDPBackend.MATH):
            return self._parts(apply(_dattri()).detach().flatten())

    def _parts(self, flat: Tensor) -> dict[nn.Parameter, Tensor]:
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        return {each: piece.view(each.shape) for each, piece in zip(self.parameters, pieces, strict=True)}

    def _loss(self, flat: Tensor) -> Tensor:
        pieces = self._parts(flat).values()
        changed = _Changed(self.model, dict(zip(self.names, pieces, strict=True)))
        losses = [
            self.run.task.losses(changed, self.run.to_device(batch)).sum()
            for dataset in self.datasets
            for batch in in_order(self.run.task, dataset, self.batch_size)
        ]
        return torch.stack(losses).sum() / self.examples


class _Changed(nn.Module):
    """A model with other values of some parameters, which derivatives can pass through."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["inner"], self.values = model, values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.__dict__["inner"], dict(self.values), args, kwargs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the model as it is: tasks ask them for their type and device."""
        return self.__dict__["inner"].parameters(recurse)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)


def _fresh_scores(
    run: Run, model: nn.Module, candidates: MapDataset, slots: Sequence[Slot], direction: Gradient, batch_size: int
) -> Tensor:
    scores: list[float] = []
    with _evaluating(run, model):
        for positions in torch.arange(len(candidates)).split(batch_size):
            (batch,) = in_order(run.task, subset(candidates, positions), batch_size)
            with Capture(model, slots, len(positions)) as capture:
                losses = run.task.losses(model, run.to_device(batch))
                torch.autograd.grad(losses.sum(), [slot.of(model) for slot in slots])
            found = capture.gradients()
            scores += [_dot(dict(found.of(place)), model, direction) for place in range(len(positions))]
    return torch.tensor(scores, dtype=torch.double)


def _dot(parts: Mapping[Slot, Part], model: nn.Module, direction: Gradient) -> float:
    return sum(
        float(part.to(direction[slot.of(model)].device).dot(direction[slot.of(model)])) for slot, part in parts.items()
    )


@contextmanager
def _evaluating(run: Run, model: nn.Module) -> Generator[None]:
    """Evaluation mode and the run's device within the block."""
    before = model.training
    model.to(run.device).eval()
    try:
        yield
    finally:
        model.train(before)


def _dattri() -> Any:
    try:
        return importlib.import_module("dattri.func.hessian")
    except ModuleNotFoundError as error:
        raise SettingError(
            "scores with a Hessian need dattri, which is not installed: pip install 'expunge[influence]', or choose "
            "the kind gradient or activation"
        ) from error
