"""Taking back what the forget set did to a model, from the gradients that its training logged."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import psutil
import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import ExpungeWarning, MissingNeedError, SettingError, StateError
from expunge.methods._search import Reach, reach
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier, require_need
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.states import GradientLog
from expunge.states.gradient_capture import Rows
from expunge.states.gradient_layers import Slot
from expunge.states.influence import logged_scores, loss_gradient
from expunge.training import Algorithm, Optimizer, PhaseRecord, Run, Term, over_batches

_WATCHED = 64  # examples of the retain set whose loss is watched: no more, for cost is to grow with the forget set
_HARM = 0.5


@dataclass(frozen=True)
class GradientReversal(Method):
    """Add the forget set's logged gradients to the weights, as far as its loss rises to that of unseen examples.

    The weights move along d = Σ g, the forget examples' own gradients at the steps that used them, or along what the
    optimiser made of these, Σ η g / (√v̂ + ε). How far is found by a line search: the mean loss of the forget set is
    to reach that of the holdout under the original, measured before, and then go `overshoot` times as far again. A
    short training on the retain set repairs what else was hit, until the overshoot is brought back. Needs a gradient
    log as `problem.state`; the work grows with the forget set, not with the training set.

    A reconstruction: of the method's paper only the abstract is public, and no code. The defaults are ours, measured
    against retrained models (benchmarks/reversal_claims.py, reversal_default.py); `preset("paper")` is the abstract's:
    gradients of the first epoch, of the embedding.

    With `rounds` above 1 it is iterative: after a reversal the training examples that are left in the log are scored by
    the scalar product of their gradients with the forget set's gradient at the new weights, those that score above a
    share of the forget set's own join it, and the reversal starts anew with all of them, until none does. Each round
    reads the whole log.

    Args:
        epochs: `all`, `first` or `last` epoch of the log. Default all (ours, measured in
            benchmarks/reversal_claims.py).
        layers: What is moved, by the patterns of the log: `embedding`, `head`, `block:0-3`, globs. Default all (ours,
            measured in benchmarks/reversal_default.py).
        scale: `raw` gradients, or `preconditioned` by the optimiser's state. Default preconditioned (ours, measured in
            benchmarks/reversal_claims.py).
        target_loss: Mean loss in nats that the forget set is to reach; by default that of the holdout.
        overshoot: How far beyond the target before the repair, as a share of the way there from the forget loss of the
            original. Default .5 (ours, measured in benchmarks/reversal_default.py).
        start: First length to try, of the norm of all weights. Default 2e-3 (ours).
        growth: Factor from one length to the next. Default 1.5 (ours).
        bisections: Halvings between the last two lengths. Default 5 (ours).
        cap: Largest length, of the norm of all weights. Default 1 (ours).
        repair_steps: Most steps on the retain set, fewer where the forget loss is back at the target; 0 for none.
            Default 30 (ours).
        repair_learning_rate: Of AdamW. Default 1e-4 (ours).
        batch_size: Of the repair. Default 8 (ours).
        rounds: Most reversals. Default 1.
        influence_threshold: Share of the forget examples' mean score from which on another joins them. Default .5
            (ours).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.STATE})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Zagardo 2024 (arXiv 2406.09391), a reconstruction from its abstract; defaults ours"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": {
                "epochs": "first",
                "layers": ("embedding",),
                "scale": "raw",
                "overshoot": 0.0,
                "repair_steps": 0,
            }
        }
    )

    epochs: Literal["first", "last", "all"] = "all"
    layers: tuple[str, ...] = ("all",)
    scale: Literal["raw", "preconditioned"] = "preconditioned"
    target_loss: float | None = None
    overshoot: float = 0.5
    start: float = 2e-3
    growth: float = 1.5
    bisections: int = 5
    cap: float = 1.0
    repair_steps: int = 30
    repair_learning_rate: float = 1e-4
    batch_size: int = 8
    rounds: int = 1
    influence_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_one_of(self, "epochs", ("first", "last", "all"))
        require_one_of(self, "scale", ("raw", "preconditioned"))
        require_positive(self, "target_loss", "start", "cap", "repair_learning_rate", "influence_threshold")
        require_at_least(self, 0, "overshoot")
        require_whole(self, "bisections", "repair_steps", least=0)
        require_whole(self, "batch_size", "rounds")
        require_positive(self, "growth")
        if self.growth <= 1:
            raise SettingError(f"growth must be above 1, not {self.growth!r}")
        if not self.layers or isinstance(self.layers, str):
            raise SettingError(
                f"layers must be several patterns, as in ('embedding', 'block:0-3'), not {self.layers!r}"
            )

    def require(self, problem: Problem) -> None:
        """Raise unless the problem holds a log, what gives the target, and what the repair needs."""
        super().require(problem)
        if not isinstance(problem.state, GradientLog):
            raise StateError(
                f"the state is of kind {getattr(problem.state, 'kind', None)!r}, where 'gradients' is needed; pass the "
                "GradientLog of the model's training"
            )
        if self.target_loss is None and problem.holdout is None:
            raise MissingNeedError(
                "GradientReversal needs a target: pass `holdout=` a dataset that was never trained on, or set "
                "target_loss"
            )
        if self.repair_steps:
            require_need("GradientReversal with repair_steps above 0", problem, Need.RETAIN)

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Reverse, in rounds where asked for, and repair."""
        log, task, forget = cast(GradientLog, problem.state), problem.task, cast(MapDataset, problem.forget)
        log.require_model(problem.model)
        asked = log.ids(task, forget)
        slots = log.choose(self.layers)
        model = run.copy(problem.model).eval()
        watch = _Watch(run, problem)
        before = watch.losses(model)
        target = self._target(run, problem)
        ids = list(asked)
        for number in range(1, self.rounds + 1):
            model.load_state_dict(problem.model.state_dict())
            name = "reverse" if number == 1 else f"reverse-{number}"
            self._reverse(name, model, problem, run, _Reversal(log, ids, slots, target, before, watch))
            joined = self._influential(log, ids, asked, model, slots, run, forget) if number < self.rounds else []
            if not joined:
                break
            ids += joined
        if self.repair_steps:
            self._repair(model, problem, run, log, ids[len(asked) :], target)
            record = run.phases[-1]
            record.measured |= {f"{name}_loss_after": value for name, value in watch.losses(model).items()}
        state = log.without(ids).bound_to(model)
        return Forgotten(model.eval(), state=state)

    def _target(self, run: Run, problem: Problem) -> float:
        if self.target_loss is not None:
            return self.target_loss
        return _mean_loss(run, problem.model, cast(MapDataset, problem.holdout))

    def _reverse(self, name: str, model: nn.Module, problem: Problem, run: Run, what: "_Reversal") -> None:
        started = time.monotonic()
        direction = self._direction(what.log, what.ids, what.slots, model)
        origin = {parameter: parameter.detach().clone() for parameter in direction}
        size = math.sqrt(sum(float(each.detach().double().square().sum()) for each in model.parameters()))
        unit = math.sqrt(sum(float(each.double().square().sum()) for each in direction.values()))
        if not 0 < unit < math.inf:
            raise StateError(
                f"the logged gradients of the forget set add up to a direction of length {unit}; the log is of no "
                "use here: unlearn by a method that needs none"
            )
        forget = cast(MapDataset, problem.forget)

        def step(length: float) -> float:
            with torch.no_grad():
                for parameter, each in direction.items():
                    parameter.copy_(origin[parameter] + each * (length * size / unit))
            return _mean_loss(run, model, forget)

        found = reach(
            step,
            what.aim(self.overshoot),
            before=what.before["forget"],
            start=self.start,
            cap=self.cap,
            growth=self.growth,
            bisections=self.bisections,
        )
        step(found.length)
        after = what.watch.losses(model)
        record = PhaseRecord(
            name=name,
            steps=len(found.history),
            examples=len(found.history) * len(forget),
            seconds=time.monotonic() - started,
            peak_memory_bytes=int(psutil.Process().memory_info().rss),
            history=found.history,
            measured={
                "target_loss": what.target,
                "coefficient": found.length * size / unit,
                "length": found.length,
                "reversed_examples": float(len(what.ids)),
                **{f"{each}_loss_before": value for each, value in what.before.items()},
                **{f"{each}_loss_reversed": value for each, value in after.items()},
            },
            warnings=self._doubts(found, what, after),
        )
        run.phases.append(record)
        for note in record.warnings:
            warnings.warn(note, ExpungeWarning, stacklevel=2)

    def _direction(
        self, log: GradientLog, ids: Sequence[int], slots: Sequence[Slot], model: nn.Module
    ) -> dict[nn.Parameter, Tensor]:
        """What the examples' gradients add up to, by parameter; both uses of a tied one in one."""
        total = {slot.of(model): torch.zeros_like(slot.of(model)) for slot in slots}
        entries = [entry for example in ids for entry in log.entries(example, self.epochs)]
        if self.scale == "preconditioned":
            parts = log.updates(entries, slots)
        else:
            parts = (each for entry in entries for each in log.gradient(entry, slots).items())
        for slot, part in parts:
            parameter = slot.of(model)
            moved = part.to(parameter.device)
            if isinstance(moved, Rows):
                total[parameter].index_add_(0, moved.index, moved.values.to(parameter.dtype))
            else:
                total[parameter] += moved.dense()
        return {parameter: each.detach() for parameter, each in total.items()}

    def _doubts(self, found: Reach, what: "_Reversal", after: Mapping[str, float]) -> list[str]:
        doubts: list[str] = []
        wanted = what.aim(self.overshoot)
        if not found.reached:
            doubts.append(
                f"target not reached: the forget loss is {found.loss:.3g} where {wanted:.3g} was asked for, at a "
                f"step of {found.length:.2g} times the weights; take more epochs or layers, or scale='preconditioned'"
            )
        if not found.history:
            doubts.append(
                f"nothing was reversed: the forget loss is {found.loss:.3g} already, and {wanted:.3g} was asked for; "
                "there is nothing that its loss would show of having been trained on"
            )
        rise = after["forget"] - what.before["forget"]
        for name in ("retain", "holdout"):
            other = after.get(name, 0.0) - what.before.get(name, 0.0)
            if found.history and not other <= _HARM * max(rise, 0.0):
                doubts.append(
                    f"over-exposed: the {name} loss rose by {other:.3g} while the forget loss rose by {rise:.3g}, so "
                    "the step hits more than the forget set; lower overshoot, choose fewer layers, or repair for longer"
                )
        return doubts

    def _influential(
        self,
        log: GradientLog,
        ids: Sequence[int],
        asked: Sequence[int],
        model: nn.Module,
        slots: Sequence[Slot],
        run: Run,
        forget: MapDataset,
    ) -> list[int]:
        """Which of the examples that are left in the log still do for the forget set what it did for itself."""
        direction = loss_gradient(run, model, forget, slots, self.batch_size)
        known = set(ids)
        others = [each for each in log.ids_left() if each not in known]
        own = float(logged_scores(log, asked, model, slots, direction, self.epochs).mean())
        scores = logged_scores(log, others, model, slots, direction, self.epochs)
        if own <= 0:
            return []
        return [
            each for each, score in zip(others, scores.tolist(), strict=True) if score > self.influence_threshold * own
        ]

    def _repair(
        self,
        model: nn.Module,
        problem: Problem,
        run: Run,
        log: GradientLog,
        joined: Sequence[int],
        target: float,
    ) -> None:
        retain = cast(MapDataset, problem.retain)
        if joined:  # what was reversed too must not be taught again
            gone = torch.tensor([int(each) for each in log.examples.digests[torch.tensor(joined)].tolist()])
            kept = ~torch.isin(log.examples.digest(problem.task, retain), gone)
            retain = subset(retain, kept.nonzero().flatten())
        term = Term(retain, problem.task.losses, batch_size=self.batch_size)
        forget = cast(MapDataset, problem.forget)
        run.train(
            "repair",
            model,
            [term],
            Optimizer(self.repair_learning_rate, Algorithm.ADAMW),
            steps=self.repair_steps,
            watch=lambda _: _mean_loss(run, model, forget) <= target,  # beyond, it would be taught again
        )
        model.eval()


@dataclass(frozen=True)
class _Reversal:
    """What is to be reversed, and how far."""

    log: GradientLog
    ids: Sequence[int]
    slots: Sequence[Slot]
    target: float
    before: Mapping[str, float]
    watch: "_Watch"

    def aim(self, overshoot: float) -> float:
        """The loss that is searched for."""
        return self.target + overshoot * max(self.target - self.before["forget"], 0.0)


@dataclass(frozen=True)
class _Watch:
    """The sets whose losses are looked at before and after."""

    run: Run
    problem: Problem
    sets: dict[str, MapDataset] = field(init=False)

    def __post_init__(self) -> None:
        named = {"forget": self.problem.forget, "retain": self.problem.retain, "holdout": self.problem.holdout}
        found = {name: each for name, each in named.items() if each is not None}
        if "retain" in found:
            order = torch.randperm(len(found["retain"]), generator=self.run.generator("watched"))
            found["retain"] = subset(found["retain"], order[:_WATCHED])
        object.__setattr__(self, "sets", found)

    def losses(self, model: nn.Module) -> dict[str, float]:
        """Mean loss of each set."""
        return {name: _mean_loss(self.run, model, each) for name, each in self.sets.items()}


def _mean_loss(run: Run, model: nn.Module, dataset: MapDataset) -> float:
    return float(torch.cat(over_batches(run, model, dataset, run.task.losses, _PASS)).double().mean())


_PASS = 32
