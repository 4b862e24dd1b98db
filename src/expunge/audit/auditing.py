"""Audit an unlearned model against retraining."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit.distances import answers, layer_distances, mean_divergence, tug_of_war
from expunge.audit.evidence import Aspect, Cost, Curve, Estimate, Evidence, Measure
from expunge.audit.observation import Observation, observe, outputs, sample
from expunge.audit.references import Oracles, check_oracles, train_oracles
from expunge.audit.relearning import Relearning, relearn
from expunge.audit.statistics import mean_estimate, prediction_band, side_of
from expunge.audit.verdict import judge
from expunge.data import MapDataset
from expunge.errors import MissingNeedError, SettingError
from expunge.problem import Problem
from expunge.training import Execution, Run, reproducible
from expunge.training.seeds import generator
from expunge.unlearning import Unlearned

UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class AuditSettings:
    """How thoroughly and how strictly to audit.

    Args:
        relearning: The relearning test.
        examples: At most so many examples of each set are looked at.
        margin: How far outside the oracles' range a share (accuracy, Tug-of-War) still counts as inside.
        divergence_margin: The same for divergences, in nats.
        widest_band: Where the oracles' range of a share is wider than this, a value inside it is undecided.
    """

    relearning: Relearning = field(default_factory=Relearning)
    examples: int = 10_000
    margin: float = 0.02
    divergence_margin: float = 0.02
    widest_band: float = 0.2


def audit(
    unlearned: Unlearned,
    *,
    oracles: int | Sequence[nn.Module] = 5,
    seed: int = 0,
    settings: AuditSettings | None = None,
    execution: Execution | None = None,
) -> Evidence:
    """Measure an unlearned model, its original and a set of oracles alike, and say how they compare.

    Args:
        unlearned: A result of `unlearn`; its problem must hold the forget set and the retain set.
        oracles: How many to train by the problem's recipe, or models already trained without the forget set.
        seed: Of the oracles' training, of samples and of resampling.
        settings: Margins and sizes.
        execution: Device, precision, progress.

    Returns:
        The evidence, with a verdict.

    Raises:
        MissingNeedError: There is no forget set, no retain set, or no recipe where oracles are to be trained.
        ReferenceModelError: The recipe failed, or its oracles are identical.
    """
    problem, settings = unlearned.problem, settings or AuditSettings()
    execution = execution or Execution()
    if problem.forget is None or problem.retain is None:
        missing = "forget" if problem.forget is None else "retain"
        raise MissingNeedError(f"an audit measures on the {missing} set: give the problem `{missing}=` a dataset")
    count = oracles if isinstance(oracles, int) else len(oracles)
    if count < 2:
        raise SettingError(f"an audit compares with at least two oracles, and three for a verdict, not {count}")
    if isinstance(oracles, int):
        references = train_oracles(problem, oracles, seed, progress=execution.progress)
    else:
        references = Oracles([model.eval() for model in oracles], [])
    check_oracles(references)
    with reproducible():
        run = Run(problem.task, seed, execution)
        comparison = _Comparison(unlearned, references, settings, run, problem.forget, problem.retain)
        return comparison.evidence()


T = TypeVar("T")


@dataclass(frozen=True)
class _Models(Generic[T]):
    """The same thing for every model that is compared."""

    unlearned: T
    original: T
    oracles: list[T]

    @classmethod
    def of(cls, measure: Callable[[nn.Module], T], unlearned: Unlearned, oracles: Oracles) -> "_Models[T]":
        return cls(
            measure(unlearned.model),
            measure(unlearned.problem.model),
            [measure(model) for model in oracles.models],
        )


@dataclass(frozen=True)
class _Comparison:
    unlearned: Unlearned
    references: Oracles
    settings: AuditSettings
    run: Run
    forget: MapDataset
    retain: MapDataset

    def evidence(self) -> Evidence:
        sets = self._sets()
        seen = {name: self._of(lambda model, data=data: observe(self.run, model, data)) for name, data in sets.items()}
        said = self._of(lambda model: outputs(self.run, model, sets["forget"]))
        curves = [self._relearn(refit=False), self._relearn(refit=True)]
        measures = [
            *self._quality(seen),
            *self._divergence(said),
            self._tug_of_war(seen),
            *(self._relearned(curve) for curve in curves),
        ]
        verdict, sentence, findings = judge(measures, len(self.references.models))
        problem = self.unlearned.problem
        return Evidence(
            verdict=verdict,
            sentence=sentence,
            findings=findings,
            measures=measures,
            groups=self._by_group(seen),
            curves=curves,
            answers=answers(problem.task, said.unlearned, said.original, said.oracles),
            layers=layer_distances(self.unlearned.model, problem.model, self.references.models),
            cost=self._cost(),
            settings=asdict(self.settings) | {"oracles": len(self.references.models)},
            seed=self.run.seed,
            result_digest=self.unlearned.record.result_digest,
        )

    def _of(self, measure: Callable[[nn.Module], T]) -> _Models[T]:
        return _Models.of(measure, self.unlearned, self.references)

    def _sets(self) -> dict[str, MapDataset]:
        problem: Problem = self.unlearned.problem
        whole = {"forget": self.forget, "retain": self.retain, "holdout": problem.holdout}
        return {
            name: sample(data, self.settings.examples, generator(self.run.seed, "sample", name))
            for name, data in whole.items()
            if data is not None
        }

    def _quality(self, seen: dict[str, _Models[Observation]]) -> list[Measure]:
        """Every quality measure on every set; holdout examples of kinds that only the forget set has stand apart."""
        gone = _kinds(seen["forget"]) - _kinds(seen["retain"])
        measures: list[Measure] = []
        for name, models in seen.items():
            forgotten = np.isin(models.unlearned.groups, sorted(gone))
            parts = {name: np.ones_like(forgotten)}
            if name == "holdout" and forgotten.any() and not forgotten.all():
                parts = {"holdout": ~forgotten, "holdout, forgotten kind": forgotten}
            for part, chosen in parts.items():
                aspect = Aspect.FORGETTING if part in ("forget", "holdout, forgotten kind") else Aspect.UTILITY
                measures += [self._share(quality, part, aspect, models, chosen) for quality in models.unlearned.quality]
        return measures

    def _by_group(self, seen: dict[str, _Models[Observation]]) -> list[Measure]:
        """The headline by group: of the holdout where there is one, else of the training data."""
        measures: list[Measure] = []
        for name in ["holdout"] if "holdout" in seen else ["forget", "retain"]:
            models = seen[name]
            gone = _kinds(seen["forget"]) - _kinds(seen["retain"])
            for group in sorted(_kinds(models), key=_natural):
                aspect = Aspect.FORGETTING if group in gone or name == "forget" else Aspect.UTILITY
                chosen = models.unlearned.groups == group
                measures.append(self._share(models.unlearned.headline, group, aspect, models, chosen))
        return measures

    def _share(
        self,
        quality: str,
        on: str,
        aspect: Aspect,
        models: _Models[Observation],
        chosen: NDArray[np.bool_],
    ) -> Measure:
        estimates = _Models(
            mean_estimate(models.unlearned.quality[quality][chosen], self.run.seed),
            mean_estimate(models.original.quality[quality][chosen], self.run.seed),
            [mean_estimate(oracle.quality[quality][chosen], self.run.seed) for oracle in models.oracles],
        )
        return self._measure(quality, on, aspect, estimates, UNIT)

    def _divergence(self, said: _Models[Tensor]) -> list[Measure]:
        task, seed = self.run.task, self.run.seed

        def against(outputs: Tensor, references: Sequence[Tensor]) -> Estimate:
            return mean_estimate(mean_divergence(task, outputs, references), seed)

        to_original = _Models(
            against(said.unlearned, [said.original]),
            against(said.original, [said.original]),
            [against(outputs, [said.original]) for outputs in said.oracles],
        )
        to_oracles = _Models(
            against(said.unlearned, said.oracles),
            against(said.original, said.oracles),
            [against(outputs, _without(said.oracles, number)) for number, outputs in enumerate(said.oracles)],
        )
        return [
            self._measure("divergence from the oracles", "forget", Aspect.DISTANCE, to_oracles),
            self._measure("divergence from the original", "forget", Aspect.CLOSENESS, to_original),
        ]

    def _tug_of_war(self, seen: dict[str, _Models[Observation]]) -> Measure:
        sets, seed = list(seen.values()), self.run.seed
        everyone = [models.oracles for models in sets]
        estimates = _Models(
            tug_of_war([models.unlearned for models in sets], everyone, seed),
            tug_of_war([models.original for models in sets], everyone, seed),
            [
                tug_of_war(
                    [models.oracles[number] for models in sets],
                    [_without(oracles, number) for oracles in everyone],
                    seed,
                )
                for number in range(len(self.references.models))
            ],
        )
        return self._measure("Tug-of-War", "all sets", Aspect.SUMMARY, estimates, UNIT)

    def _relearn(self, *, refit: bool) -> Curve:
        return relearn(
            self.settings.relearning,
            self.run,
            forget=self.forget,
            retain=self.retain,
            unlearned=self.unlearned.model,
            original=self.unlearned.problem.model,
            oracles=self.references.models,
            refit=refit,
        )

    def _relearned(self, curve: Curve) -> Measure:
        """The mean height of a curve: how much is relearned, and how soon."""

        def height(points: Sequence[Estimate]) -> Estimate:
            return Estimate(
                value=float(np.mean([point.value for point in points])),
                interval=points[0].interval.model_copy(
                    update={
                        "low": float(np.mean([point.interval.low for point in points])),
                        "high": float(np.mean([point.interval.high for point in points])),
                    }
                ),
            )

        oracles = [Estimate(value=float(np.mean(points)), interval=curve.band[0]) for points in curve.oracles]
        estimates = _Models(height(curve.unlearned), height(curve.original), oracles)
        return self._measure(f"{curve.name}, mean", "forget", Aspect.FORGETTING, estimates, UNIT)

    def _measure(
        self,
        name: str,
        on: str,
        aspect: Aspect,
        estimates: _Models[Estimate],
        limits: tuple[float, float] = (0.0, np.inf),
    ) -> Measure:
        share = limits == UNIT
        margin = self.settings.margin if share else self.settings.divergence_margin
        values = [estimate.value for estimate in estimates.oracles]
        band = prediction_band(values, limits)
        return Measure(
            name=name,
            on=on,
            aspect=aspect,
            unlearned=estimates.unlearned,
            original=estimates.original,
            oracles=values,
            band=band,
            margin=margin,
            side=side_of(estimates.unlearned.value, band, margin, self.settings.widest_band),
        )

    def _cost(self) -> Cost:
        record, seconds = self.unlearned.record, list(self.references.seconds)
        return Cost(
            seconds=record.seconds,
            examples=record.examples,
            peak_memory_bytes=record.peak_memory_bytes,
            oracle_seconds=seconds,
            share_of_retraining=record.seconds / float(np.mean(seconds)) if seconds else None,
        )


def _kinds(models: _Models[Observation]) -> set[str]:
    return set(models.unlearned.groups.tolist())


def _without(items: Sequence[T], number: int) -> list[T]:
    return [item for index, item in enumerate(items) if index != number]


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
