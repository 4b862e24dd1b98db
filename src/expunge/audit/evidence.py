"""What an audit found, in a form that is written to `evidence.json` and read back."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from expunge.audit.attack_scores import AttackEvaluation
from expunge.audit.fairness import Fairness
from expunge.audit.image_figures import EmbeddingPlaces, PictureGrid, Restoration
from expunge.audit.intervals import Estimate, Interval, Part
from expunge.audit.margins import ExamplePercentiles, MarginDivergence
from expunge.audit.reconstruction import Reconstruction
from expunge.errors import SavedModelError
from expunge.storage import write_json

EVIDENCE_FILE = "evidence.json"


class Aspect(StrEnum):
    """What it means when a figure leaves the oracles' range; see `docs/verdict.md`.

    `forgetting`, in what the model answers: above is residual influence, below over-forgetting. `knowledge`, what comes
    back after relearning or shows under a probe: the same. `utility`: below is utility lost. `distance`
    from the oracles: above is a difference. Three are shown and not judged. `closeness` to the original, as a distance:
    a model retrained from the original's own initialisation stays close to it without having seen the forget set.
    `summary`: the verdict rests on its parts. `exposure`, how well retained examples can be told from unseen ones: it
    follows from how long a model was trained.
    """

    FORGETTING = "forgetting"
    KNOWLEDGE = "knowledge"
    UTILITY = "utility"
    DISTANCE = "distance"
    CLOSENESS = "closeness"
    SUMMARY = "summary"
    EXPOSURE = "exposure"

    @property
    def judged(self) -> bool:
        """Whether a deviation counts."""
        return self not in (Aspect.CLOSENESS, Aspect.SUMMARY, Aspect.EXPOSURE)


class Side(StrEnum):
    """Where a figure lies against the oracles: shown to differ, shown to be equivalent, or neither."""

    INSIDE = "inside"
    ABOVE = "above"
    BELOW = "below"
    UNDECIDED = "undecided"


class Measure(Part):
    """One figure of the unlearned model beside the same figure of the oracles.

    Attributes:
        name: What is measured, such as `accuracy`.
        on: On which data, such as `forget`.
        aspect: What a deviation means.
        unlearned: Of the unlearned model.
        original: Of the original, where it makes sense.
        oracles: Of each oracle.
        band: 95 % prediction interval for one more oracle.
        margin: A difference so small that it is never held against a model.
        limit: A difference up to which a model counts as equivalent; None where a measure only finds differences and
            says nothing of equivalence.
        p_value: How likely a retrained model lies as far from the others, beyond the margin.
        corrected_p_value: The same, corrected for the number of measures.
        deviation: Standard deviation of one more retrained model, as the oracles tell it.
        detectable: Size of a difference that would be found with the power that the margins ask for; None where the
            measure is not judged.
        at_most: Upper 95 % confidence limit of the difference from the mean of retraining, in the direction that harms.
        side: Where the unlearned model lies.
        oracles_needed: Where undecided, how many oracles would decide with the power that the margins ask for, if they
            scatter as these do; None where 1,000 would not.
    """

    name: str
    on: str
    aspect: Aspect
    unlearned: Estimate
    original: Estimate | None
    oracles: list[float]
    band: Interval
    margin: float
    limit: float | None
    p_value: float
    corrected_p_value: float
    deviation: float
    detectable: float | None = None
    at_most: float
    side: Side
    oracles_needed: int | None = None


class Curve(Part):
    """Quality on forget examples while a model is trained again on a few others of them.

    Attributes:
        name: `relearning`, or `relearning, head refitted`.
        steps: Optimiser steps taken.
        unlearned: At each of the steps.
        original: At each of the steps.
        oracles: For each oracle, at each of the steps.
        band: 95 % prediction interval for one more oracle, at each of the steps.
        threshold: Quality that counts as relearned: 95 % of the original's before unlearning.
        relearn_steps: Steps to reach the threshold by `unlearned`, `original` and each oracle; None if not reached.
    """

    name: str
    steps: list[int]
    unlearned: list[Estimate]
    original: list[Estimate]
    oracles: list[list[float]]
    band: list[Interval]
    threshold: float
    relearn_steps: dict[str, int | None]


class AttackFigures(Part):
    """The figures of an attack on one more model.

    Attributes:
        auc: Area under the ROC curve.
        above: True positive rate at each of the limits of the unlearned model's `low_rates`, large scores taken for
            membership; None where there are too few unseen scores.
        below: The same, small scores taken for membership.
        epsilon: Lower bound of epsilon, where the attack gives one.
    """

    auc: float
    above: list[float | None]
    below: list[float | None]
    epsilon: float | None

    @classmethod
    def of(cls, found: AttackEvaluation) -> "AttackFigures":
        """The figures alone."""
        above = [rate.above.true_positive_rate.value if rate.above else None for rate in found.low_rates]
        below = [rate.below.true_positive_rate.value if rate.below else None for rate in found.low_rates]
        return cls(
            auc=found.auc.value,
            above=above,
            below=below,
            epsilon=found.epsilon.lower_bound if found.epsilon else None,
        )


class Membership(Part):
    """A membership attack on single examples, on the unlearned model, the original and each oracle.

    Where holdout examples are what forget examples are held against, intervals are over examples, which count as
    independent. Where scores of an oracle are, intervals say how much a figure varies from oracle to oracle.

    Attributes:
        attack: Its name.
        against: What the scores of forget examples are held against: those of `holdout examples` of the same kinds, or
            `scores of an oracle` on the same forget examples.
        unlearned: What the attack's scores show.
        original: The figures of the same attack on the original.
        oracles: The same of each oracle that is no reference of the others.
    """

    attack: str
    against: str
    unlearned: AttackEvaluation
    original: AttackFigures
    oracles: list[AttackFigures]


class ExampleEpsilons(Part):
    """Epsilon of each forget example, between models that unlearned it and models that never saw it.

    Attributes:
        estimates: The best of many thresholds, which errs upwards; by example.
        lower_bounds: With 95 % confidence for each example alone; by example.
        largest: What perfect separation of so few models would show as an estimate.
        delta: The delta of (epsilon, delta).
        unlearned_models: Their number.
        oracle_models: Their number.
    """

    estimates: list[float]
    lower_bounds: list[float]
    largest: float
    delta: float
    unlearned_models: int
    oracle_models: int


class Leak(Part):
    """A forget example on which the unlearned model is far from retraining.

    Attributes:
        position: Of the example in the forget set, from 0.
        deviations: How many standard deviations the model's confidence lies above the oracles'.
        quality: Headline quality of the unlearned model on it.
        oracle_quality: Mean headline quality of the oracles on it.
        likelihood_ratio: U-LiRA's log-likelihood ratio in nats, where there are shadows.
        epsilon: Its estimated epsilon, where there are shadows.
    """

    position: int
    deviations: float
    quality: float
    oracle_quality: float
    likelihood_ratio: float | None
    epsilon: float | None


class Answers(Part):
    """How often each kind of answer is given on the forget set: mean predicted probability of each class.

    Attributes:
        kinds: Names of the answers.
        unlearned: By the unlearned model, with a 95 % interval over examples.
        original: By the original.
        oracles: By each oracle.
    """

    kinds: list[str]
    unlearned: list[Estimate]
    original: list[float]
    oracles: list[list[float]]


class LayerDistance(Part):
    """Distance of a layer's weights from the original's, over the original's norm.

    Attributes:
        layer: Name of the layer.
        unlearned: Of the unlearned model.
        oracles: Of each oracle.
        band: 95 % prediction interval for one more oracle.
    """

    layer: str
    unlearned: float
    oracles: list[float]
    band: Interval


class Cost(Part):
    """What unlearning cost beside retraining.

    Attributes:
        seconds: Wall time of unlearning.
        examples: Examples that passed forward and backward.
        peak_memory_bytes: The largest memory of any phase.
        oracle_seconds: Wall time of training each oracle; empty where they were given and not trained here.
        expected: Whether those times are what a trial led to expect, because oracles were trained together.
        share_of_retraining: Wall time over the oracles' geometric mean, with the 95 % interval of that mean.
    """

    seconds: float
    examples: int
    peak_memory_bytes: int
    oracle_seconds: list[float]
    expected: bool = False
    share_of_retraining: Estimate | None


class Verdict(StrEnum):
    """What the evidence allows one to say."""

    INDISTINGUISHABLE = "indistinguishable from retraining"
    RESIDUAL = "residual influence"
    OVER_FORGOTTEN = "over-forgotten"
    UTILITY_LOST = "utility lost"
    INCONCLUSIVE = "inconclusive"


class Finding(Part):
    """One deviation from retraining and what it counts as, or one measure that could not be decided."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        """The finding in words."""
        return self.text


class Evidence(Part):
    """All that an audit found.

    Attributes:
        verdict: In two words.
        sentence: In one sentence.
        findings: Each deviation from retraining, and each measure that could not be decided.
        measures: On whole sets.
        groups: The same, by group (such as class) of the holdout or of the training data.
        curves: Relearning.
        membership: Attacks on single examples; empty where there are too few unseen examples of the same kind.
        percentiles: Distances from the oracles example by example; empty with fewer than three oracles.
        margins: KLoM by set; empty without shadows.
        epsilons: By forget example; absent without shadows.
        leaks: The ten forget examples that leak most, worst first; empty with fewer than three oracles.
        reconstruction: Whether the deleted row can be recovered from the models before and after; absent where more
            than a linear head differs.
        fairness: By name of a subgroup, figures by its values before and after; for tasks of two classes, where
            fairlearn is installed.
        restorations: Of image-to-image models, figures of what is restored by set; empty for other tasks. Error and
            Fréchet distance of the forget set are judged too, as logarithms, among the measures.
        grid: A few pictures and what the models make of them, where the audit was asked to keep some.
        embeddings: Where the features of what models restore lie in one plane, under the same condition and where there
            is a feature network.
        answers: Prediction distribution on the forget set; absent where a task has no kinds of answer.
        layers: Weight distances.
        cost: Beside retraining.
        notes: What a reader must know about the evidence, such as duplicates of forget examples among retained ones.
        settings: Of the audit.
        seed: Of the audit.
        result_digest: Of the unlearned model; ties the evidence to its record.
    """

    schema_version: Literal[3] = 3
    verdict: Verdict
    sentence: str
    findings: list[Finding]
    measures: list[Measure]
    groups: list[Measure]
    curves: list[Curve]
    membership: list[Membership]
    percentiles: list[ExamplePercentiles]
    margins: dict[str, MarginDivergence]
    epsilons: ExampleEpsilons | None
    leaks: list[Leak]
    reconstruction: Reconstruction | None = None
    fairness: dict[str, Fairness] = Field(default_factory=dict[str, Fairness])
    restorations: list[Restoration] = Field(default_factory=list[Restoration])
    grid: PictureGrid | None = None
    embeddings: EmbeddingPlaces | None = None
    answers: Answers | None
    layers: list[LayerDistance]
    cost: Cost
    notes: list[str]
    settings: dict[str, Any]
    seed: int
    result_digest: str

    def measure(self, name: str, on: str) -> Measure:
        """The measure of this name on this set.

        Raises:
            KeyError: There is none.
        """
        for measure in (*self.measures, *self.groups):
            if (measure.name, measure.on) == (name, on):
                return measure
        raise KeyError(f"no measure {name!r} on {on!r}")

    def save(self, folder: str | Path) -> Path:
        """Write `evidence.json` into a folder, atomically; returns its path."""
        path = Path(folder) / EVIDENCE_FILE
        write_json(path, self.model_dump(mode="json"))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Evidence":
        """Read `evidence.json` from a folder.

        Raises:
            SavedModelError: It is missing, damaged, or of another version.
        """
        path = Path(folder) / EVIDENCE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise SavedModelError(f"there is no {path}; audit the run first") from error
        except ValidationError as error:
            raise SavedModelError(f"{path} is damaged or of another version; audit the run again") from error
