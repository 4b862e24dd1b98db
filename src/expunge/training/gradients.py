"""What gradients say of each weight, measured over a dataset without training."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from expunge.data import MapDataset, View
from expunge.tasks import Batch
from expunge.training.batches import fetch
from expunge.training.checkpoint import PhaseRecord
from expunge.training.objective import Objective
from expunge.training.progress import bar
from expunge.training.run import Run

Reduction = Callable[[Tensor], Tensor]
"""Applied to the gradients of single examples, (examples, *weights), number by number, before they are averaged."""

_MOST_NUMBERS = 2**26  # gradients of single examples held at once: 256 MiB in float32
_MOST_EXAMPLES = 64


def mean_by_example(
    run: Run,
    phase: str,
    model: nn.Module,
    dataset: MapDataset,
    objectives: Sequence[Objective],
    reduction: Reduction = torch.square,
) -> dict[str, Tensor]:
    """The mean over examples of a function of each one's own gradient, summed over objectives.

    With `torch.square` and the loss it is the diagonal of the empirical Fisher information. A mean over batches of the
    square of a batch's mean gradient, as public code has it, depends on the size of the batch: noise in it is smaller
    by that factor, so it is not comparable between sets of other sizes.

    Args:
        run: Where the measurement belongs to, as a phase of its own.
        phase: Its name.
        model: Looked at in evaluation mode; it is not changed.
        dataset: The examples.
        objectives: Functions that give one number an example.
        reduction: What is averaged.

    Returns:
        By name of a parameter, a number a weight, on the run's device.
    """
    frozen = run.frozen(model)
    weights: dict[str, Tensor] = dict(frozen.named_parameters())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    size = _examples_at_once(run, sum(weight.numel() for weight in weights.values()))
    single = [_single(_Objective(frozen, objective)) for objective in objectives]
    # The other kernels of attention have no rule for single examples, and would loop over them with a warning.
    with _Measuring(run, phase, dataset) as measuring, sdpa_kernel(SDPBackend.MATH):
        for batch in measuring.batches(torch.arange(len(dataset)).split(size)):
            alone = tree_map(lambda leaf: leaf.unsqueeze(1) if isinstance(leaf, Tensor) else leaf, batch)
            for one in single:
                gradients, values = one(weights, alone)
                for name, each in gradients.items():
                    total[name] += reduction(each).sum(0) / len(dataset)
                measuring.saw(values)
    return total


def mean_by_batch(
    run: Run,
    phase: str,
    model: nn.Module,
    dataset: MapDataset,
    objective: Objective,
    reduction: Reduction | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """The mean over batches of a function of each batch's mean gradient.

    Without a function it is the gradient of the mean objective, whatever the size of a batch.

    Args:
        run: Where the measurement belongs to, as a phase of its own.
        phase: Its name.
        model: Looked at in evaluation mode; it is not changed.
        dataset: The examples, which are cut into batches in their order.
        objective: One number an example.
        reduction: Applied to the gradient of a batch, (*weights), before it is averaged.
        batch_size: Most examples in a batch; all are of nearly this size.

    Returns:
        By name of a parameter, a number a weight, on the run's device.
    """
    copied = run.copy(model).eval()
    weights = dict(copied.named_parameters())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    batches = torch.arange(len(dataset)).tensor_split(math.ceil(len(dataset) / batch_size))
    most = run.execution.micro_batch_size or batch_size
    with _Measuring(run, phase, dataset) as measuring:
        for positions in batches:
            sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for batch in measuring.batches(positions.tensor_split(math.ceil(len(positions) / most))):
                values = objective(copied, batch)
                measuring.saw(values)
                found = torch.autograd.grad(values.sum() / len(positions), list(weights.values()), allow_unused=True)
                for name, each in zip(weights, cast("tuple[Tensor | None, ...]", found), strict=True):
                    if each is not None:
                        sums[name] += each
            for name, each in sums.items():
                total[name] += (each if reduction is None else reduction(each)) * (len(positions) / len(dataset))
    return total


class _Objective(nn.Module):
    """An objective as a module, so that its weights can be handed in."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective(self.model, batch).sum()


def _single(objective: _Objective) -> Callable[[dict[str, Tensor], Batch], tuple[dict[str, Tensor], Tensor]]:
    """Gradient and value of each example of a batch whose leaves are (examples, 1, ...)."""

    def value(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return cast(Tensor, functional_call(objective, named, (batch,)))

    return cast(Any, vmap(grad_and_value(value), in_dims=(None, 0)))


def _examples_at_once(run: Run, weights: int) -> int:
    most = min(_MOST_EXAMPLES, run.execution.micro_batch_size or _MOST_EXAMPLES)
    return max(1, min(most, _MOST_NUMBERS // weights))


class _Measuring:
    """A pass over a dataset that is a phase of its own, with progress and cost, but without a step."""

    def __init__(self, run: Run, phase: str, dataset: MapDataset) -> None:
        self.run, self.view = run, View.of(dataset)
        self.record = PhaseRecord(name=phase)
        enabled = run.execution.progress and run.accelerator.is_local_main_process
        self.bar = bar(phase, len(dataset), enabled=enabled)

    def __enter__(self) -> "_Measuring":
        self.started = time.monotonic()
        self.display = self.bar.__enter__()
        return self

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Batch]:
        """Fetch examples, batch after batch."""
        for chosen in positions:
            self.values: list[Tensor] = []
            yield self.run.to_device(fetch(self.run.task, [self.view], chosen))
            self.record.steps += 1
            self.record.examples += len(chosen)
            self.record.history.append(float(torch.stack(self.values).sum(0).mean()))
            self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, _memory(self.run.device))
            self.display.advance(len(chosen))

    def saw(self, values: Tensor) -> None:
        """Remember what an objective was, for the history."""
        self.values.append(values.detach().flatten())

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        self.bar.__exit__(kind, *details)
        if kind is None:
            self.record.seconds = time.monotonic() - self.started
            self.run.phases.append(self.record)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
