"""The demonstration of deletion with a certificate: patients leave a diagnostic model after its data are out of reach.

The rows are those of scikit-learn's bundled breast cancer data (Wolberg et al., UCI). Their scale is that of the
patients held out, so that no forgotten patient leaves a trace in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.audit import Evidence, References
from expunge.cli.demo import one_thread
from expunge.cli.demo_folder import clear_demonstration
from expunge.errors import ExpungeError, StateError, UnknownRowError
from expunge.methods import NewtonRemoval
from expunge.networks import ClippedFeatures
from expunge.privacy import Certificate
from expunge.problem import Problem, split
from expunge.report import REPORT_FILE, write_report
from expunge.states import STATE_FILE, CurvatureState, HeadOptimum, load_state, record, save_state
from expunge.states.head import head_of, head_weights
from expunge.storage import write_json
from expunge.tasks import Classification
from expunge.training import Execution
from expunge.training.seeds import generator
from expunge.unlearning import KEY_FILE, MODEL_FILE, RECORD_FILE, Unlearned, unlearn

FACTS_FILE = "hospital.json"

_L2 = 0.003
_SCALE = 4.0  # standard deviations; in that unit most rows have a norm below the 1 that they are clipped to
_TRAINING_PATIENTS = 450
_WARD = 20
_RUNS = ("first", "second")
_RUN_FILES = {RECORD_FILE, MODEL_FILE, KEY_FILE, STATE_FILE, REPORT_FILE, "evidence.json"}
_QUIET = Execution(progress=False)
_TASK = Classification(2, names=("malignant", "benign"))


@dataclass(frozen=True)
class Deletion:
    """One request and what came of it.

    Attributes:
        name: Who was forgotten, in words.
        patients: How many, in all requests so far.
        certificate: What is guaranteed.
        seconds: From request to model.
        state_bytes: Size of the file that the next request needs.
        distance: Measured, of the weights before noise from the retrained optimum.
        accuracy: On patients held out.
        reference_accuracy: The same of draws of the reference, retraining and noise.
        probability: Given to the diagnosis of the first forgotten patient.
        reference_probability: The same of the draws.
        folder: Where model, record and report lie.
    """

    name: str
    patients: int
    certificate: Certificate
    seconds: float
    state_bytes: int
    distance: float
    accuracy: float
    reference_accuracy: Sequence[float]
    probability: float
    reference_probability: Sequence[float]
    folder: Path


@dataclass(frozen=True)
class Stay:
    """The whole story.

    Attributes:
        folder: Where it lies.
        accuracy: Of the original, on patients held out.
        probability: Given by the original to the diagnosis of the patient who is forgotten first.
        training_patients: How many the original was trained on.
        holdout_patients: How many it was not.
        deletions: In turn.
        refusals: What was refused, and in which words.
        evidence: Of the audit of the last deletion.
    """

    folder: Path
    accuracy: float
    probability: float
    training_patients: int
    holdout_patients: int
    deletions: Sequence[Deletion]
    refusals: Sequence[tuple[str, str]]
    evidence: Evidence


def run_hospital(folder: Path, *, oracles: int, seed: int, say: Callable[[str], None]) -> Stay:
    """Train, record, delete a patient from the state alone, then a ward; compare both with retraining.

    Raises:
        OutputError: The folder cannot be written, or holds something other than an earlier demonstration.
    """
    _clear(folder)
    with one_thread():
        return _Hospital(folder, oracles, seed, say).stay()


def training_data() -> TensorDataset:
    """Measurements of the patients trained on, (patients, 30), and their diagnoses."""
    return _patients()[0]


def holdout_data() -> TensorDataset:
    """The patients who are not trained on."""
    return _patients()[1]


def untrained() -> nn.Module:
    """A logistic head on clipped measurements."""
    return nn.Sequential(ClippedFeatures(1.0), nn.Linear(31, 2, bias=False, dtype=torch.double))


class _Hospital:
    """The steps of the story, which share a folder and a recipe."""

    def __init__(self, folder: Path, oracles: int, seed: int, say: Callable[[str], None]) -> None:
        self.folder, self.oracles, self.seed, self.say = folder, oracles, seed, say
        self.train, self.holdout = training_data(), holdout_data()
        self.recipe = HeadOptimum(untrained, _TASK, l2=_L2)

    def stay(self) -> Stay:
        self.say(f"Training a logistic head on {len(self.train)} patients; {len(self.holdout)} more are held out")
        original = self.recipe(self.train, self.seed)
        save_state(record(original, _TASK, self.train, l2=_L2, feature_norm=1.0), self.folder)
        patient = int(_probabilities(original, self.train).argmin())
        ward = _others(patient, self.seed)
        self.say("Recorded the curvature; from here on a deletion reads no patient but those who leave")
        self.say("A patient is to be forgotten: the one whom the model fits worst, and who costs most noise")
        first, one = self._delete(original, self.folder, "first", [patient], [], "the patient")
        self.say(f"A ward of {_WARD} patients is to be forgotten as well")
        second, other = self._delete(first.model, first_folder := self.folder / "first", "second", ward, [patient],
                                     f"a ward of {_WARD} as well")  # fmt: skip
        refusals = [
            ("the same patient again", _refusal(second, split(self.train, indices=[patient]).forget, self.seed)),
            ("somebody never trained on", _refusal(second, split(self.holdout, indices=[0]).forget, self.seed)),
        ]
        self.say(f"Auditing the second deletion against {self.oracles} models retrained with the same noise")
        evidence = self._audit(first.model, second, ward, [patient, *ward])
        evidence.save(self.folder / "second")
        write_report(first_folder, first.record, None, "A patient leaves the diagnostic model")
        write_report(self.folder / "second", second.record, evidence, "A ward leaves the diagnostic model")
        patients = len(self.train), len(self.holdout)
        before = _accuracy(original, self.holdout), float(_probabilities(original, self.train)[patient])
        stay = Stay(self.folder, *before, *patients, (one, other), refusals, evidence)
        write_json(self.folder / FACTS_FILE, facts(stay))
        return stay

    def _delete(
        self, model: nn.Module, source: Path, name: str, leaving: list[int], gone: list[int], words: str
    ) -> tuple[Unlearned, Deletion]:
        """Delete from what lies in `source`, save, remove the state that is used up, and compare with retraining."""
        state = load_state(source)
        problem = Problem(model, _TASK, split(self.train, indices=leaving).forget, state=state)
        result = unlearn(problem, NewtonRemoval(), seed=self.seed, execution=_QUIET)
        result.save(self.folder / name)
        (source / STATE_FILE).unlink()
        certificate = cast(Certificate, result.record.certificate)
        everybody = [*gone, *leaving]
        retain = split(self.train, indices=everybody).retain
        noisy = self.recipe.with_noise(certificate.sigma)
        draws = [noisy(retain, seed) for seed in range(self.oracles)]
        patient = everybody[0]
        return result, Deletion(
            words,
            len(everybody),
            certificate,
            result.record.seconds,
            (self.folder / name / STATE_FILE).stat().st_size,
            float((_before_noise(result) - _weights(self.recipe(retain, self.seed))).norm()),
            _accuracy(result.model, self.holdout),
            [_accuracy(draw, self.holdout) for draw in draws],
            float(_probabilities(result.model, self.train)[patient]),
            [float(_probabilities(draw, self.train)[patient]) for draw in draws],
            self.folder / name,
        )

    def _audit(self, model: nn.Module, result: Unlearned, leaving: list[int], gone: list[int]) -> Evidence:
        certificate = cast(Certificate, result.record.certificate)
        problem = Problem(
            model,
            _TASK,
            split(self.train, indices=leaving).forget,
            split(self.train, indices=gone).retain,
            self.holdout,
            recipe=self.recipe.with_noise(certificate.sigma),
        )
        return References.prepare(problem, self.oracles, seed=self.seed, execution=_QUIET).compare(result)


def facts(stay: Stay) -> dict[str, Any]:
    """The story for programs."""
    return {
        "demonstration": "hospital",
        "training_patients": stay.training_patients,
        "holdout_patients": stay.holdout_patients,
        "accuracy": stay.accuracy,
        "probability": stay.probability,
        "deletions": [
            {
                "forgotten": each.name,
                "patients": each.patients,
                "measured_distance": each.distance,
                "claimed_bound": each.certificate.sensitivity,
                "accuracy": each.accuracy,
                "reference_accuracy": list(each.reference_accuracy),
                "probability": each.probability,
                "reference_probability": list(each.reference_probability),
                "seconds": each.seconds,
                "state_bytes": each.state_bytes,
                "certificate": each.certificate.model_dump(mode="json"),
                "report": str(each.folder / REPORT_FILE),
            }
            for each in stay.deletions
        ],
        "refused": [{"request": request, "error": error} for request, error in stay.refusals],
        "verdict": stay.evidence.verdict.value,
    }


def _refusal(after: Unlearned, rows: Any, seed: int) -> str:
    problem = Problem(after.model, _TASK, rows, state=after.state)
    try:
        unlearn(problem, NewtonRemoval(), seed=seed, execution=_QUIET)
    except UnknownRowError as error:
        return str(error)
    raise ExpungeError("a deletion that should have been refused went through; please report this")


def _before_noise(result: Unlearned) -> Tensor:
    state = result.state
    if not isinstance(state, CurvatureState):
        raise StateError(f"a deletion from curvature returns such a state, not {type(state).__name__}")
    return state.weights + state.newton_step().step


def _weights(model: nn.Module) -> Tensor:
    return head_weights(head_of(model, _TASK))


@torch.no_grad()
def _probabilities(model: nn.Module, data: TensorDataset) -> Tensor:
    """Given to the recorded diagnosis: (patients,)."""
    inputs, labels = data.tensors
    return model(inputs).softmax(1).gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def _accuracy(model: nn.Module, data: TensorDataset) -> float:
    inputs, labels = data.tensors
    return float((model(inputs).argmax(1) == labels).double().mean())


def _others(patient: int, seed: int) -> list[int]:
    order = torch.randperm(_TRAINING_PATIENTS, generator=generator(seed, "ward")).tolist()
    return sorted([each for each in order if each != patient][:_WARD])


@cache
def _patients() -> tuple[TensorDataset, TensorDataset]:
    bunch = cast(Any, load_breast_cancer())
    rows, labels = torch.as_tensor(bunch.data).double(), torch.as_tensor(bunch.target).long()
    order = torch.randperm(len(labels), generator=generator(0, "patients"))
    train, holdout = order[:_TRAINING_PATIENTS], order[_TRAINING_PATIENTS:]
    scaled = (rows - rows[holdout].mean(0)) / (_SCALE * rows[holdout].std(0))
    return TensorDataset(scaled[train], labels[train]), TensorDataset(scaled[holdout], labels[holdout])


def _clear(folder: Path) -> None:
    clear_demonstration(folder, FACTS_FILE, (STATE_FILE,), _RUNS, inside=_RUN_FILES)
