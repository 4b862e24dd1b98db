"""The audit's own audit: models whose truth is known, and how often it calls them what they are."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.audit import AuditSettings, References, Relearning, Verdict
from expunge.audit.evidence import Interval
from expunge.audit.references import Oracles
from expunge.cli.demo import holdout_data, training_data
from expunge.data import MapDataset, subset
from expunge.methods import FineTune, GradientAscent, Stage
from expunge.networks import mlp
from expunge.problem import Problem, split
from expunge.storage import digest_model
from expunge.tasks import Classification
from expunge.training import Execution, Supervised, bar
from expunge.training.seeds import generator
from expunge.unlearning import Unlearned, unlearn

REFERENCES, POOL = 20, 40
SETTINGS = AuditSettings(Relearning(forget_examples=40, retain_examples=360, steps=(0, 5, 10, 20)))
_QUIET = Execution(progress=False)
_TASK = Classification(10)
_FORGOTTEN, _OTHER = 3, 5
_OUTLIERS = 60


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


def digits() -> Subject:
    """Scikit-learn's digits as feature vectors, and an MLP."""
    flat = [TensorDataset(data.tensors[0].flatten(1), data.tensors[1]) for data in (training_data(), holdout_data())]
    recipe = Supervised(partial(mlp, 64, 10), _TASK, epochs=12, batch_size=64, execution=_QUIET)
    return Subject(flat[0], flat[1], recipe)


def self_test(subject: Subject, seeds: int, *, progress: bool = True) -> list[Outcome]:
    """Audit shams and truths over several seeds, each beside 20 of 40 oracles, drawn anew each time.

    Two requests are tried: a whole class, and examples with wrong labels that the original has memorised.

    Args:
        subject: What to train.
        seeds: How many originals, and how many oracles that are no reference.
        progress: Show a bar on a terminal.
    """
    outcomes: dict[str, Outcome] = {}
    rounds = [_forget_a_class, _forget_outliers]
    with bar("self-test", len(rounds) * seeds, enabled=progress) as display:
        for case in rounds:
            for name, truth, verdict in case(subject, seeds, display.advance):
                outcomes.setdefault(name, Outcome(name, truth)).verdicts.append(verdict)
    return list(outcomes.values())


def self_test_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The outcomes for programs."""
    return [
        {
            "model": each.name,
            "retrained": each.truth,
            "found": each.found,
            "of": len(each.verdicts),
            "interval": [each.rate.low, each.rate.high],
            "verdicts": {verdict.value: each.verdicts.count(verdict) for verdict in dict.fromkeys(each.verdicts)},
        }
        for each in outcomes
    ]


def print_self_test(console: Console, outcomes: list[Outcome]) -> None:
    """The outcomes as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "should be", "found different", "95 % interval", "verdicts"):
        table.add_column(heading)
    for each in outcomes:
        counts = {verdict.value: each.verdicts.count(verdict) for verdict in dict.fromkeys(each.verdicts)}
        table.add_row(
            each.name,
            "passed" if each.truth else "caught",
            f"{each.found} of {len(each.verdicts)}",
            f"{each.rate.low:.2f} to {each.rate.high:.2f}",
            ", ".join(f"{verdict} {count}" for verdict, count in counts.items()),
        )
    console.print(table)


def _forget_a_class(subject: Subject, seeds: int, done: Callable[[], None]) -> Iterator[tuple[str, bool, Verdict]]:
    parts = split(subject.train, classes=[_FORGOTTEN])
    half = subset(parts.forget, torch.arange(0, len(parts.forget), 2))
    others = split(subject.train, classes=[_OTHER])
    first = subject.recipe(subject.train, 0)
    problem = Problem(first, _TASK, parts.forget, parts.retain, subject.holdout, parts.classes)
    pool = _Pool.train(subject, problem, parts.retain, max(seeds, POOL))
    for seed in range(seeds):
        original = subject.recipe(subject.train, seed)
        problem = replace(problem, model=original)
        wrong = subject.recipe(others.retain, 2000 + seed)
        kept_half = subject.recipe(_both(parts.retain, half), 3000 + seed)
        models: dict[str, nn.Module] = {
            "untouched original": original,
            "mask on the forgotten logit": _changed(original, _mask),
            "bias on the forgotten logit": _changed(original, _bias),
            "noise on the weights": _changed(original, partial(_noise, seed=seed)),
            "unlearned on the wrong class": wrong,
            "half of the class left in": kept_half,
            "a few steps of fine-tuning": _unlearned(problem, FineTune((Stage(1e-3, steps=5),)), seed),
            "collapse by gradient ascent": _unlearned(
                problem, GradientAscent(learning_rate=0.05, epochs=10, clip_norm=1.0), seed
            ),
        }
        yield from _judged(problem, models, pool, seed, "class")
        done()


def _forget_outliers(subject: Subject, seeds: int, done: Callable[[], None]) -> Iterator[tuple[str, bool, Verdict]]:
    """Examples whose labels are wrong, which a model can only know by heart."""
    inputs, labels = subject.train.tensors
    chosen = torch.randperm(len(labels), generator=generator(0, "outliers"))[:_OUTLIERS]
    wrong = labels.clone()
    wrong[chosen] = (labels[chosen] + 1) % 10
    train = TensorDataset(inputs, wrong)
    parts = split(train, indices=chosen)
    spoilt = replace(subject, train=train, recipe=replace(subject.recipe, epochs=5 * subject.recipe.epochs))
    problem = Problem(spoilt.recipe(train, 0), _TASK, parts.forget, parts.retain, subject.holdout)
    pool = _Pool.train(spoilt, problem, parts.retain, max(seeds, POOL))
    for seed in range(seeds):
        original = spoilt.recipe(train, seed)
        problem = replace(problem, model=original)
        models: dict[str, nn.Module] = {
            "memorised outliers left in": original,
            "memorised outliers, a few steps of fine-tuning": _unlearned(
                problem, FineTune((Stage(1e-3, steps=5),)), seed
            ),
        }
        yield from _judged(problem, models, pool, seed, "outliers")
        done()


@dataclass(frozen=True)
class _Pool:
    """Oracles, measured once, of which each seed has one that is judged and others that are its references."""

    measured: References

    @classmethod
    def train(cls, subject: Subject, problem: Problem, retain: MapDataset, size: int) -> "_Pool":
        models = [subject.recipe(retain, 1000 + number) for number in range(size)]
        return cls(References.prepare(problem, models, settings=SETTINGS, execution=_QUIET))

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


def _judged(
    problem: Problem, models: dict[str, nn.Module], pool: _Pool, seed: int, request: str
) -> Iterator[tuple[str, bool, Verdict]]:
    fresh, references = pool.draw(problem, seed)
    template = unlearn(problem, FineTune((Stage(1e-9, steps=1),)), execution=_QUIET)
    for name, model in models.items():
        yield name, False, references.compare(_in_place_of(template, model)).verdict
    yield f"retrained ({request})", True, references.compare(_in_place_of(template, fresh)).verdict


def _in_place_of(done: Unlearned, model: nn.Module) -> Unlearned:
    return replace(done, model=model, record=done.record.model_copy(update={"result_digest": digest_model(model)}))


def _unlearned(problem: Problem, method: FineTune | GradientAscent, seed: int) -> nn.Module:
    return unlearn(problem, method, seed=seed, execution=_QUIET).model


def _changed(model: nn.Module, change: Callable[[nn.Module, nn.Linear], None]) -> nn.Module:
    changed = copy.deepcopy(model)
    head = _TASK.head_of(changed)
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
