"""The audit's own audit: models whose truth is known, and how often it calls them what they are."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import cast

import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.audit.auditing import References
from expunge.audit.choosing import FleetSettings
from expunge.audit.evidence import Interval, Verdict
from expunge.audit.executors import TrainingJob
from expunge.audit.fleet import Fleet
from expunge.audit.measuring import Announce
from expunge.audit.references import Oracles
from expunge.audit.relearning import Relearning
from expunge.audit.settings import AuditSettings
from expunge.data import MapDataset, subset
from expunge.methods import FineTune, GradientAscent, Stage
from expunge.problem import Problem, split
from expunge.storage import digest_model
from expunge.tasks import Classification
from expunge.training import Execution, Supervised, bar
from expunge.training.seeds import generator
from expunge.unlearning import Unlearned, unlearn

REFERENCES, POOL = 20, 40
SETTINGS = AuditSettings(Relearning(forget_examples=40, retain_examples=360, steps=(0, 5, 10, 20)))
_QUIET = Execution(progress=False)
_FORGOTTEN, _OTHER = 3, 5
_OUTLIERS = 60

_Models = Mapping[str, Sequence[nn.Module]]
_Judged = tuple[str, bool, Verdict]  # what the model is, whether it is a retrained one, what it is called


@dataclass(frozen=True)
class Outcome:
    """How often one kind of model was called what.

    Attributes:
        name: What the model is.
        truth: Whether it is a retrained model, which must pass; the others must be caught.
        verdicts: One for each seed.
    """

    name: str
    truth: bool
    verdicts: list[Verdict] = field(default_factory=list[Verdict])

    @property
    def found(self) -> int:
        """How often a difference from retraining was found: right for a sham, a false alarm for the truth."""
        return sum(verdict not in (Verdict.INDISTINGUISHABLE, Verdict.INCONCLUSIVE) for verdict in self.verdicts)

    @property
    def rate(self) -> Interval:
        """95 % interval of how often a difference is found (Clopper and Pearson 1934)."""
        interval = stats.binomtest(self.found, len(self.verdicts)).proportion_ci(0.95)
        return Interval(low=float(interval.low), high=float(interval.high))


@dataclass(frozen=True)
class Subject:
    """Data and a recipe whose models the audit is tried on.

    Args:
        train: Inputs and labels.
        holdout: The same, never trained on.
        recipe: How models are trained.
    """

    train: TensorDataset
    holdout: TensorDataset
    recipe: Supervised


def self_test(
    subject: Subject,
    seeds: int,
    *,
    progress: bool = True,
    fleet: FleetSettings | None = None,
    announce: Announce | None = None,
) -> list[Outcome]:
    """Audit shams and truths over several seeds, each beside 20 of 40 oracles, drawn anew each time.

    Two requests are tried: a whole class, and examples with wrong labels that the original has memorised.

    Args:
        subject: What to train.
        seeds: How many originals, and how many oracles that are no reference.
        progress: Show bars on a terminal.
        fleet: Where and in which way models are trained, and where they are kept for the next time.
        announce: Is told what training and measuring will cost.
    """
    how = _Training(fleet, progress, announce)
    requests = [_ClassRequest.train(subject, seeds, how), _OutlierRequest.train(subject, seeds, how)]
    outcomes: dict[str, Outcome] = {}
    with bar("self-test", len(requests) * seeds, enabled=progress) as display:
        for request, seed in product(requests, range(seeds)):
            for name, truth, verdict in request.judge(seed):
                outcomes.setdefault(name, Outcome(name, truth)).verdicts.append(verdict)
            display.advance()
    return list(outcomes.values())


@dataclass(frozen=True)
class _Training:
    """How the models of the self-test are trained."""

    fleet: FleetSettings | None
    progress: bool
    announce: Announce | None

    def train(self, subject: Subject, title: str, groups: Mapping[str, tuple[MapDataset, range]]) -> _Models:
        """Train every group of models, each on its data with each of its seeds, as one fleet."""
        jobs = [
            TrainingJob(data, seed, f"{name} {number + 1}")
            for name, (data, chosen) in groups.items()
            for number, seed in enumerate(chosen)
        ]
        fleet = Fleet(subject.recipe, jobs, title)
        models = iter(fleet.train(self.fleet, progress=self.progress, announce=self.announce).models)
        return {name: [next(models) for _ in chosen] for name, (_, chosen) in groups.items()}


@dataclass(frozen=True)
class _ClassRequest:
    """A whole class is to be forgotten."""

    problem: Problem
    models: _Models
    pool: "_Pool"

    @classmethod
    def train(cls, subject: Subject, seeds: int, how: _Training) -> "_ClassRequest":
        parts = split(subject.train, classes=[_FORGOTTEN])
        half = subset(parts.forget, torch.arange(0, len(parts.forget), 2))
        others = split(subject.train, classes=[_OTHER])
        models = how.train(
            subject,
            "models for forgetting a class",
            {
                "original": (subject.train, range(seeds)),
                "oracle": (parts.retain, range(1000, 1000 + max(seeds, POOL))),
                "model without another class": (others.retain, range(2000, 2000 + seeds)),
                "model with half of the class": (_both(parts.retain, half), range(3000, 3000 + seeds)),
            },
        )
        problem = Problem(
            models["original"][0], subject.recipe.task, parts.forget, parts.retain, subject.holdout, parts.classes
        )
        return cls(problem, models, _Pool.measured_once(problem, models["oracle"], how))

    def judge(self, seed: int) -> Iterator[_Judged]:
        original = self.models["original"][seed]
        problem = replace(self.problem, model=original)
        models: dict[str, nn.Module] = {
            "untouched original": original,
            "mask on the forgotten logit": _changed(problem, _mask),
            "bias on the forgotten logit": _changed(problem, _bias),
            "noise on the weights": _changed(problem, partial(_noise, seed=seed)),
            "unlearned on the wrong class": self.models["model without another class"][seed],
            "half of the class left in": self.models["model with half of the class"][seed],
            "a few steps of fine-tuning": _unlearned(problem, FineTune((Stage(1e-3, steps=5),)), seed),
            "collapse by gradient ascent": _unlearned(
                problem, GradientAscent(learning_rate=0.05, epochs=10, clip_norm=1.0), seed
            ),
        }
        yield from _judged(problem, models, self.pool, seed, "class")


@dataclass(frozen=True)
class _OutlierRequest:
    """Examples whose labels are wrong, which a model can only know by heart, are to be forgotten."""

    problem: Problem
    models: _Models
    pool: "_Pool"

    @classmethod
    def train(cls, subject: Subject, seeds: int, how: _Training) -> "_OutlierRequest":
        inputs, labels = subject.train.tensors
        chosen = torch.randperm(len(labels), generator=generator(0, "outliers"))[:_OUTLIERS]
        wrong = labels.clone()
        wrong[chosen] = (labels[chosen] + 1) % 10
        spoilt = replace(
            subject,
            train=TensorDataset(inputs, wrong),
            recipe=replace(subject.recipe, epochs=5 * subject.recipe.epochs),
        )
        parts = split(spoilt.train, indices=chosen)
        models = how.train(
            spoilt,
            "models for forgetting outliers",
            {
                "original": (spoilt.train, range(seeds)),
                "oracle": (parts.retain, range(1000, 1000 + max(seeds, POOL))),
            },
        )
        problem = Problem(models["original"][0], subject.recipe.task, parts.forget, parts.retain, subject.holdout)
        return cls(problem, models, _Pool.measured_once(problem, models["oracle"], how))

    def judge(self, seed: int) -> Iterator[_Judged]:
        original = self.models["original"][seed]
        problem = replace(self.problem, model=original)
        models: dict[str, nn.Module] = {
            "memorised outliers left in": original,
            "memorised outliers, a few steps of fine-tuning": _unlearned(
                problem, FineTune((Stage(1e-3, steps=5),)), seed
            ),
        }
        yield from _judged(problem, models, self.pool, seed, "outliers")


@dataclass(frozen=True)
class _Pool:
    """Oracles, measured once, of which each seed has one that is judged and others that are its references."""

    measured: References

    @classmethod
    def measured_once(cls, problem: Problem, models: Sequence[nn.Module], how: _Training) -> "_Pool":
        execution = Execution(progress=how.progress)
        return cls(References.prepare(problem, models, settings=SETTINGS, execution=execution, announce=how.announce))

    def draw(self, problem: Problem, seed: int) -> tuple[nn.Module, References]:
        """The oracle that is judged, and what it is judged against."""
        models, sitting = self.measured.oracles.models, self.measured.sitting
        others = [number for number in range(len(models)) if number != seed % len(models)]
        order = torch.randperm(len(others), generator=generator(seed, "references"))[:REFERENCES].tolist()
        chosen = [others[place] for place in order]
        references = replace(
            self.measured,
            problem=problem,
            oracles=Oracles([models[number] for number in chosen]),
            original=sitting.portray(sitting.run.frozen(problem.model)),
            portraits=[self.measured.portraits[number] for number in chosen],
        )
        return models[seed % len(models)], references


def _both(first: MapDataset, second: MapDataset) -> MapDataset:
    inputs, labels = (
        torch.stack([torch.as_tensor(part[index][field]) for part in (first, second) for index in range(len(part))])
        for field in (0, 1)
    )
    return TensorDataset(inputs, labels)


def _judged(problem: Problem, models: dict[str, nn.Module], pool: _Pool, seed: int, request: str) -> Iterator[_Judged]:
    fresh, references = pool.draw(problem, seed)
    template = unlearn(problem, FineTune((Stage(1e-9, steps=1),)), execution=_QUIET)
    for name, model in models.items():
        yield name, False, references.compare(_in_place_of(template, model)).verdict
    yield f"retrained ({request})", True, references.compare(_in_place_of(template, fresh)).verdict


def _in_place_of(done: Unlearned, model: nn.Module) -> Unlearned:
    return replace(done, model=model, record=done.record.model_copy(update={"result_digest": digest_model(model)}))


def _unlearned(problem: Problem, method: FineTune | GradientAscent, seed: int) -> nn.Module:
    return unlearn(problem, method, seed=seed, execution=_QUIET).model


def _changed(problem: Problem, change: Callable[[nn.Module, nn.Linear], None]) -> nn.Module:
    changed = copy.deepcopy(problem.model)
    head = cast(Classification, problem.task).head_of(changed)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        change(changed, head)
    return changed


def _mask(_model: nn.Module, head: nn.Linear) -> None:
    head.weight[_FORGOTTEN] = 0
    head.bias[_FORGOTTEN] = -1e4


def _bias(_model: nn.Module, head: nn.Linear) -> None:
    head.bias[_FORGOTTEN] -= 20


def _noise(model: nn.Module, _head: nn.Linear, *, seed: int) -> None:
    random = generator(seed, "noise")
    for parameter in model.parameters():
        spread: Tensor = parameter.std() if parameter.numel() > 1 else parameter.abs()
        parameter.add_(0.3 * spread * torch.randn(parameter.shape, generator=random))
