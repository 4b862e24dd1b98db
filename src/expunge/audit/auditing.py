"""Audit an unlearned model against retraining."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.audit import examples
from expunge.audit.choosing import FleetSettings
from expunge.audit.comparison import FEWEST_OF_SUBGROUP, Comparison
from expunge.audit.decision import FEWEST_ORACLES, Spread
from expunge.audit.distances import answers, layer_distances
from expunge.audit.evidence import Cost, Estimate, Evidence, Interval
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.gallery import Gallery
from expunge.audit.image_figures import EmbeddingPlaces, PictureGrid, Restoration
from expunge.audit.measuring import Announce, portrayed
from expunge.audit.membership import FEWEST_SHADOWS, HOLDOUT
from expunge.audit.notes import Conditions, conditions_of
from expunge.audit.pair import Pair
from expunge.audit.portrait import FORGET, Portrait, Sitting
from expunge.audit.references import Oracles
from expunge.audit.settings import AuditSettings
from expunge.audit.shadows import Shadows, require_trainable, require_unlearnable
from expunge.audit.verdict import judge
from expunge.data import MapDataset
from expunge.errors import MissingNeedError, ReferenceModelError, SettingError
from expunge.problem import Problem
from expunge.training import Execution, Run, reproducible
from expunge.unlearning import Record, Unlearned

_MOST_SUBGROUPS = 50


@dataclass(frozen=True)
class References:
    """The original and the oracles of a problem, measured; several unlearned models can be held against them."""

    problem: Problem
    oracles: Oracles
    sitting: Sitting
    settings: AuditSettings
    original: Portrait
    portraits: Sequence[Portrait]
    shadows: Shadows | None = None
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict[str, NDArray[np.str_]])
    conditions: Conditions = field(default_factory=lambda: Conditions([], []))

    @classmethod
    def prepare(
        cls,
        problem: Problem,
        oracles: int | Sequence[nn.Module] = 5,
        *,
        seed: int = 0,
        settings: AuditSettings | None = None,
        execution: Execution | None = None,
        fleet: FleetSettings | None = None,
        shadows: int = 0,
        subgroups: Mapping[str, Sequence[Any]] | None = None,
        network: FeatureNetwork | None = None,
        announce: Announce | None = None,
    ) -> "References":
        """Train oracles where a number is given, and measure them and the original; see `audit`."""
        settings, execution = settings or AuditSettings(), execution or Execution()
        given = _sets(problem)
        problem.check_labels()
        if seed < 0:
            raise SettingError(f"a seed must be 0 or more, not {seed}")
        if shadows == 1:
            raise SettingError(f"one shadow tells nothing; use {FEWEST_SHADOWS} at least, or 0")
        if shadows:
            require_trainable(problem)
        require_measurable(problem, seed=seed, settings=settings, execution=execution, network=network)
        if isinstance(oracles, int):
            models = Oracles.train(
                problem, oracles, seed, progress=execution.progress, settings=fleet, announce=announce
            )
        else:
            models = Oracles(list(oracles))
        trained = (
            Shadows.train(problem, shadows, seed, progress=execution.progress, settings=fleet, announce=announce)
            if shadows
            else None
        )
        with reproducible(execution.threads):
            run = Run(problem.task, seed, execution)
            sitting = Sitting.prepare(run, run.frozen(problem.model), given, settings, network)
            original, *portraits = portrayed(sitting, [problem.model, *models.models], announce)
            conditions = conditions_of(problem.task, given[FORGET], given["retain"], original, portraits, seed)
        return cls(
            problem,
            models,
            sitting,
            settings,
            original,
            portraits,
            trained,
            _measured(subgroups or {}, problem.holdout, sitting),
            replace(conditions, notes=[*conditions.notes, *models.notes, *_notes_on(trained, len(portraits))]),
        )

    def compare(self, unlearned: Unlearned) -> Evidence:
        """Measure an unlearned model and hold it against these references.

        Raises:
            ReferenceModelError: It was unlearned from another original.
        """
        if not unlearned.started_from(self.problem.model):
            raise ReferenceModelError(
                "this model was unlearned from another original than the references were prepared for"
            )
        with reproducible(self.sitting.run.execution.threads):
            portrait = self.sitting.portray(self.sitting.run.frozen(unlearned.model))
            shadows = self.shadows.signals(unlearned.method, self.sitting) if self.shadows is not None else None
        seed, task = self.sitting.run.seed, self.problem.task
        comparison = Comparison(
            task,
            portrait,
            self.original,
            self.portraits,
            self.settings.margins,
            seed,
            shadows,
            self.subgroups,
        )
        pair = Pair(self.problem, unlearned.model, self.sitting.run.seed)
        rebuilt = pair.reconstruction()
        warnings = [rebuilt.warning] if rebuilt is not None and rebuilt.warning is not None else []
        by_example = examples.epsilons(shadows, self.portraits)
        positions = self.sitting.positions[FORGET].tolist()
        measures, groups = comparison.measures(), comparison.groups()
        verdict, sentence, findings = judge(
            measures, groups, len(self.portraits), self.conditions.reservations, self.conditions.unusable
        )
        return Evidence(
            verdict=verdict,
            sentence=sentence,
            findings=findings,
            measures=measures,
            groups=groups,
            curves=comparison.curves(self.settings.relearning),
            membership=comparison.membership(),
            percentiles=examples.percentiles(task, portrait, self.portraits),
            margins=examples.margins(shadows, self.portraits, seed),
            epsilons=by_example,
            leaks=examples.leaks(portrait, self.portraits, shadows, by_example, positions),
            reconstruction=rebuilt,
            fairness=pair.fairness(self.sitting.sets.get(HOLDOUT), self.subgroups),
            notes=[*self.conditions.notes, *comparison.notes(), *warnings],
            restorations=self._restorations(portrait),
            grid=self._grid(portrait),
            embeddings=self._embeddings(portrait),
            answers=answers(
                task, portrait.outputs, self.original.outputs, [oracle.outputs for oracle in self.portraits], seed
            ),
            layers=layer_distances(unlearned.model, self.problem.model, self.oracles.models),
            cost=_cost(unlearned.record, list(self.oracles.seconds), expected=self.oracles.together),
            settings=self._described(),
            seed=seed,
            result_digest=unlearned.record.result_digest,
        )

    def _restorations(self, unlearned: Portrait) -> list[Restoration]:
        gallery, oracles = self.sitting.gallery, [each.restored for each in self.portraits if each.restored is not None]
        if gallery is None or unlearned.restored is None or self.original.restored is None:
            return []
        return gallery.compared(unlearned.restored, self.original.restored, oracles)

    def _grid(self, unlearned: Portrait) -> PictureGrid | None:
        gallery, oracle = self.sitting.gallery, self.portraits[0].restored
        if gallery is None or oracle is None or unlearned.restored is None or self.original.restored is None:
            return None
        model = self.sitting.run.frozen(self.problem.model)
        return gallery.side_by_side(model, unlearned.restored, self.original.restored, oracle)

    def _embeddings(self, unlearned: Portrait) -> EmbeddingPlaces | None:
        gallery, oracle = self.sitting.gallery, self.portraits[0].restored
        if gallery is None or oracle is None or unlearned.restored is None or self.original.restored is None:
            return None
        return gallery.places(unlearned.restored, self.original.restored, oracle)

    def _described(self) -> dict[str, Any]:
        shadows = len(self.shadows.models) if self.shadows else 0
        models = {"oracles": len(self.portraits), "shadows": shadows, "subgroups": list(self.subgroups)}
        return self.settings.described(pictures=self.sitting.gallery is not None) | models


def require_measurable(
    problem: Problem,
    *,
    seed: int = 0,
    settings: AuditSettings | None = None,
    execution: Execution | None = None,
    network: FeatureNetwork | None = None,
) -> None:
    """Raise where an audit could not measure its sets, which is known before anything is unlearned or trained.

    Args:
        problem: What the audit would be of.
        seed: Of the audit, as all of these.
        settings: Margins and sizes.
        execution: Device, precision, progress.
        network: What measures of restored pictures rest on.

    Raises:
        MissingNeedError: There is no forget set, no retain set, or no holdout to show pictures of.
        DataError: A set has too few pictures for the Fréchet distance of as many features as the network has.
        ModelError: The network cannot take the pictures.
    """
    run, chosen = Run(problem.task, seed, execution or Execution()), settings or AuditSettings()
    Gallery.prepare(run, _sets(problem), chosen.pictures, network)


def audit(
    unlearned: Unlearned,
    *,
    oracles: int | Sequence[nn.Module] = 5,
    seed: int = 0,
    settings: AuditSettings | None = None,
    execution: Execution | None = None,
    fleet: FleetSettings | None = None,
    shadows: int = 0,
    subgroups: Mapping[str, Sequence[Any]] | None = None,
    network: FeatureNetwork | None = None,
    announce: Announce | None = None,
) -> Evidence:
    """Measure an unlearned model, its original and a set of oracles alike, and say how they compare.

    To audit several models of one problem, prepare `References` once and call its `compare`.

    Args:
        unlearned: A result of `unlearn`; its problem must hold the forget set and the retain set.
        oracles: How many to train by the problem's recipe (at least 2, and 3 for a verdict), or models that were
            already trained without the forget set.
        seed: Of the oracles' training, of samples and of resampling.
        settings: Margins and sizes.
        execution: Device, precision, progress.
        fleet: Where and in which way oracles are trained, and where they are kept for the next audit: by default in
            the user's cache folder (see `expunge cache`); `FleetSettings(cache=False)` keeps none.
        shadows: How many shadows to train on everything and to unlearn by the same method: for U-LiRA, KLoM and epsilon
            by example. Each costs a training and an unlearning.
        subgroups: By name, such as `sex`, the subgroup of each holdout example; quality is judged in every one.
        network: Of image-to-image models, what Fréchet distance, inception score and similarity of embeddings rest on;
            without one they are left out. It must not be a model whose unlearning is measured.
        announce: Is told what training the oracles will cost before it begins, and, where it is more than a few
            seconds, what measuring will cost once the first models are measured.

    Returns:
        The evidence, with a verdict.

    Raises:
        MissingNeedError: There is no forget set, no retain set, or no recipe where oracles are to be trained; or the
            method needs a state of each shadow.
        ReferenceModelError: The recipe failed, or its oracles are identical, or it cannot train shadows.
    """
    if shadows:
        require_unlearnable(unlearned.problem, unlearned.method)
    references = References.prepare(
        unlearned.problem,
        oracles,
        seed=seed,
        settings=settings,
        execution=execution,
        fleet=fleet,
        shadows=shadows,
        subgroups=subgroups,
        network=network,
        announce=announce,
    )
    return references.compare(unlearned)


def _notes_on(shadows: Shadows | None, oracles: int) -> list[str]:
    if shadows is None:
        return []
    few = f"U-LiRA and online RMIA are left out: they need {FEWEST_ORACLES + 1} oracles, and there are {oracles}"
    return [*shadows.notes, *([few] if oracles <= FEWEST_ORACLES else [])]


def _measured(
    subgroups: Mapping[str, Sequence[Any]], holdout: MapDataset | None, sitting: Sitting
) -> dict[str, NDArray[np.str_]]:
    """The subgroups of the holdout examples that are measured."""
    if subgroups and holdout is None:
        raise MissingNeedError("subgroups are of holdout examples: give the problem `holdout=` a dataset")
    found: dict[str, NDArray[np.str_]] = {}
    for name, values in subgroups.items():
        if len(values) != len(cast(MapDataset, holdout)):
            raise SettingError(
                f"the subgroup {name!r} has {len(values)} values, the holdout {len(cast(MapDataset, holdout))} "
                "examples; give one value for each, in order"
            )
        kinds = np.asarray([str(value) for value in values])
        if max(Counter(kinds.tolist()).values()) < FEWEST_OF_SUBGROUP:
            raise SettingError(
                f"every value of the subgroup {name!r} has fewer than {FEWEST_OF_SUBGROUP} examples, too few to judge; "
                "does it name persons rather than groups?"
            )
        if len(set(kinds.tolist())) > _MOST_SUBGROUPS:
            raise SettingError(
                f"the subgroup {name!r} has {len(set(kinds.tolist()))} different values, of which each would be "
                f"judged; {_MOST_SUBGROUPS} at most are of use: put values together, such as ages into decades"
            )
        found[name] = kinds[sitting.positions[HOLDOUT]]
    return found


def _sets(problem: Problem) -> dict[str, MapDataset]:
    """What an audit measures on, by name."""
    sets = {FORGET: problem.forget, "retain": problem.retain, "holdout": problem.holdout}
    for name in (FORGET, "retain"):
        if sets[name] is None:
            raise MissingNeedError(f"an audit measures on the {name} set: give the problem `{name}=` a dataset")
    return {name: data for name, data in sets.items() if data is not None}


def _cost(record: Record, oracle_seconds: list[float], *, expected: bool) -> Cost:
    return Cost(
        seconds=record.seconds,
        examples=record.examples,
        peak_memory_bytes=record.peak_memory_bytes,
        oracle_seconds=oracle_seconds,
        expected=expected,
        share_of_retraining=_share(record.seconds, oracle_seconds) if len(oracle_seconds) > 1 else None,
    )


def _share(seconds: float, oracle_seconds: list[float]) -> Estimate:
    logs = Spread([math.log(max(each, 1e-6)) for each in oracle_seconds])
    low, high = (seconds / math.exp(end) for end in (logs.mean_interval().high, logs.mean_interval().low))
    return Estimate(value=seconds / math.exp(logs.mean), interval=Interval(low=low, high=high))
