"""Many small models trained as one: their parameters are stacked, and every step is one step of all of them."""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_map
from torch.utils.data import TensorDataset

from expunge.audit.executors import Executor, Finished, TrainingJob
from expunge.data import View
from expunge.errors import DivergedError
from expunge.problem import Recipe
from expunge.tasks import Batch, Task
from expunge.training import Run, Supervised, Term, reproducible, seed_globals
from expunge.training.batches import Plan, Request, fetch
from expunge.training.seeds import derive

_PHASE = "train"
_TOLERANCE = 1e-4
_STEPS_BETWEEN_WORDS = 16


@dataclass(frozen=True)
class Batched(Executor):
    """Up to so many models at a time as one, on one device.

    Batches, their order and the step's seeds are those of one-by-one training; what comes out equals it up to
    rounding. Models are grouped by the length of their data, for only then do their steps match.

    Args:
        models: Most models in a group.
    """

    name: ClassVar = "batched"

    models: int = 64

    def refusal(self, recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
        """Refuses what would come out differently; the first step is tried in both ways and compared."""
        if type(recipe) is not Supervised:  # a class derived from it may train in another way
            return "only a Supervised recipe is known well enough to train several models as one"
        execution = recipe.execution
        if execution.precision != "no" or execution.channels_last:
            return "it trains in float32 and in the usual memory format alone"
        if execution.micro_batch_size is not None:
            return "micro_batch_size asks for less memory, and batching takes more"
        if execution.gradient_checkpointing:
            return "gradient_checkpointing asks for less memory, and batching takes more"
        if execution.workers:
            return "examples are fetched by background processes"
        with reproducible(execution.threads):
            return _objection(recipe, jobs[:2])

    def train(self, recipe: Recipe, jobs: Sequence[TrainingJob], tell: Callable[[str], None]) -> Generator[Finished]:
        """Train group after group; `recipe` is one that was not refused."""
        supervised = cast(Supervised, recipe)
        for group in _groups(jobs, self.models):
            chosen = [jobs[number] for number in group]
            with reproducible(supervised.execution.threads):
                models, diverged = _train_together(supervised, chosen, tell)
            # those that came to something first, so that they are kept whatever became of the others
            for number, model, step in sorted(zip(group, models, diverged, strict=True), key=lambda one: one[2] or 0):
                if step is None:
                    yield Finished(number, model)
                else:
                    yield Finished(number, error=DivergedError(f"the objective became NaN or infinite at step {step}"))


def _groups(jobs: Sequence[TrainingJob], most: int) -> list[list[int]]:
    """Positions of jobs of equal length, at most so many together and as evenly as can be."""
    by_length: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):
        by_length.setdefault(len(job.dataset), []).append(number)
    groups: list[list[int]] = []
    for numbers in by_length.values():
        parts = -(-len(numbers) // most)
        groups += [numbers[part::parts] for part in range(parts)]
    return groups


def _train_together(
    recipe: Supervised, jobs: Sequence[TrainingJob], tell: Callable[[str], None]
) -> tuple[list[nn.Module], list[int | None]]:
    """Train models on data of equal length; with each the step at which it diverged, if it did."""
    fleet = _Fleet(recipe, jobs)
    optimizer = recipe.optimizer.build(each for each in fleet.parameters.values() if each.requires_grad)
    diverged = torch.zeros(len(jobs), dtype=torch.long, device=fleet.device)
    for step, batch in enumerate(fleet.batches()):
        factor = recipe.optimizer.schedule.factor(step / fleet.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.learning_rate * factor
        losses = fleet.losses(batch)
        losses.sum().backward()
        _clip(fleet.parameters.values(), recipe.optimizer.clip_norm, recipe.optimizer.clip_value)
        optimizer.step()
        optimizer.zero_grad()
        diverged = torch.where((diverged == 0) & ~torch.isfinite(losses.detach()), step + 1, diverged)
        if step % _STEPS_BETWEEN_WORDS == 0:
            tell(f"{len(jobs)} as one, step {step} of {fleet.steps}")
    steps = cast("list[int]", diverged.tolist())
    return fleet.unstacked(), [step or None for step in steps]


class _Fleet:
    """Models of one shape side by side, and the batches that each of them would be given alone."""

    def __init__(self, recipe: Supervised, jobs: Sequence[TrainingJob]) -> None:
        self.recipe = recipe
        self.runs = [Run(recipe.task, job.seed, recipe.execution) for job in jobs]
        self.device = self.runs[0].device
        self.networks = [_built(recipe, run) for run in self.runs]
        stacked, buffers = stack_module_state(self.networks)
        self.parameters = {
            name: nn.Parameter(value.detach().clone(), value.requires_grad) for name, value in stacked.items()
        }
        self.buffers = buffers
        self.terms = [Term(job.dataset, recipe.task.losses, batch_size=recipe.batch_size) for job in jobs]
        self.steps = _steps(recipe, self.terms[0])
        self.seeds = [derive(run.seed, "phase", _PHASE) for run in self.runs]
        self.shell = _Losses(recipe.task, self.networks[0]).train()
        self.together = vmap(self._one, randomness="error")

    def batches(self) -> Iterator[Batch]:
        """The batch of every step, with a leading axis over models."""
        plans = [Plan([term], self.steps, seed).from_step(0) for term, seed in zip(self.terms, self.seeds, strict=True)]
        fetcher = _Fetcher(self.recipe.task, self.terms)
        for step, requests in enumerate(zip(*plans, strict=True)):
            batches = self.runs[0].to_device(fetcher([of_model[0] for of_model in requests]))
            yield self._augmented(batches, step)

    def losses(self, batch: Batch) -> Tensor:
        """Mean loss of every model on its batch: (models,)."""
        return cast(Tensor, cast(Any, self.together)(self.parameters, self.buffers, batch))

    def unstacked(self) -> list[nn.Module]:
        """The models, each by itself, in evaluation mode."""
        with torch.no_grad():
            for number, network in enumerate(self.networks):
                for name, parameter in network.named_parameters():
                    parameter.copy_(self.parameters[name][number])
        return [network.eval() for network in self.networks]

    def _one(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> Tensor:
        state = {f"network.{name}": value for name, value in {**parameters, **buffers}.items()}
        return cast(Tensor, functional_call(self.shell, state, (batch,))).mean()

    def _augmented(self, batch: Batch, step: int) -> Batch:
        """Each model's batch changed under the seed that the step has where the model is trained alone."""
        if self.recipe.augment is None:
            return batch
        changed: list[Batch] = []
        for number, seed in enumerate(self.seeds):
            seed_globals(seed, "step", step, 0)
            own = tree_map(lambda leaf, number=number: leaf[number] if isinstance(leaf, Tensor) else leaf, batch)
            changed.append(self.recipe.augment(own))
        return tree_map(_stacked, *changed)


class _Losses(nn.Module):
    """A network with its task, so that the task meets the parameters that are put in for a call."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each example: (batch,)."""
        return self.task.losses(self.network, batch)


class _Fetcher:
    """The batches of all models of a step, sliced out at once where their data share one set of tensors."""

    def __init__(self, task: Task, terms: Sequence[Term]) -> None:
        self.task = task
        self.views = [View.of(term.parts[0]) for term in terms]
        base = self.views[0].base
        self.shared = isinstance(base, TensorDataset) and all(view.base is base for view in self.views)

    def __call__(self, requests: Sequence[Request]) -> Batch:
        if not self.shared:
            return tree_map(_stacked, *map(self._single, self.views, requests))
        chosen = torch.cat(
            [view.indices[request.positions] for view, request in zip(self.views, requests, strict=True)]
        )
        columns = View(self.views[0].base, chosen).columns(torch.arange(len(chosen)))
        return tree_map(lambda leaf: _parted(leaf, len(requests)), self.task.stack(columns))

    def _single(self, view: View, request: Request) -> Batch:
        seed_globals(request.seed)
        return fetch(self.task, [view], request.positions)


def _objection(recipe: Supervised, jobs: Sequence[TrainingJob]) -> str | None:
    """Compare the first step of one or two models as one with the same step of each alone."""
    run = Run(recipe.task, jobs[0].seed, recipe.execution)
    if run.accelerator.num_processes > 1:
        return "this process is one of several that train together"
    network = _built(recipe, run)
    for module in network.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            return f"the network keeps batch statistics ({type(module).__name__}), which would have to differ by model"
    try:
        fleet = _Fleet(recipe, [job for job in jobs if len(job.dataset) == len(jobs[0].dataset)])
        batch = next(fleet.batches())
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        fleet.losses(batch).sum().backward()
        together = {name: value.grad for name, value in fleet.parameters.items()}
        first = tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, batch)
        recipe.task.losses(network.train(), first).mean().backward()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return (
            f"its first step cannot be taken for several models as one ({type(error).__name__}): layers that draw at "
            "random, such as dropout, or a forward pass that depends on values do not allow it"
        )
    if any(not torch.equal(before[name], buffer) for name, buffer in network.named_buffers()):
        return "the network changes its buffers while it is trained"
    for name, parameter in network.named_parameters():
        if not _close(together[name], parameter.grad):
            return "its first step comes out differently for several models as one"
    return None


def _built(recipe: Supervised, run: Run) -> nn.Module:
    seed_globals(run.seed, "build")
    model = recipe.untrained(run)
    fixed = recipe.task.fixed(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in fixed)
    return model


def _steps(recipe: Supervised, term: Term) -> int:
    return math.ceil(recipe.epochs * term.steps_per_epoch)


def _clip(parameters: Iterable[nn.Parameter], norm: float | None, value: float | None) -> None:
    """Clip the gradient of each model by itself; the norm first, as in one-by-one training."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if norm is not None:
        squares = torch.stack(
            [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
        )  # (tensors, models)
        factors = (norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))
    if value is not None:
        for gradient in gradients:
            gradient.clamp_(-value, value)


def _close(stacked: Tensor | None, alone: Tensor | None) -> bool:
    if stacked is None or alone is None:
        return stacked is alone
    one, other = stacked[0], alone
    scale = float(other.abs().max()) + 1e-12
    return bool(torch.isfinite(one).all()) and float((one - other).abs().max()) <= _TOLERANCE * scale


def _parted(leaf: Any, models: int) -> Any:
    return leaf.reshape(models, len(leaf) // models, *leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf


def _stacked(*leaves: Any) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def shortened(recipe: Supervised, job: TrainingJob, steps: int) -> Supervised:
    """The recipe cut down to so many steps, for a trial."""
    term = Term(job.dataset, recipe.task.losses, batch_size=recipe.batch_size)
    quiet = dataclasses.replace(recipe.execution, progress=False)
    return dataclasses.replace(recipe, epochs=(steps - 0.5) / term.steps_per_epoch, execution=quiet)
