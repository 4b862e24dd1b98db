"""What the exact methods share: taking rows out of sums, and what may be said of the result."""

from typing import TypeVar, cast

from expunge.data import MapDataset
from expunge.errors import StateError
from expunge.methods.base import Forgotten
from expunge.privacy import Certificate, Constant, Origin
from expunge.problem import Problem
from expunge.states import SufficientStatistics
from expunge.states.statistics import read_rows
from expunge.training import Run

Statistics = TypeVar("Statistics", bound=SufficientStatistics)

RELEASED_PAIR = (
    "whoever saw the model before and after: from two exact models of this kind the deleted row can be reconstructed "
    "almost perfectly (Bertran et al. 2024, arXiv 2405.20272); do not publish both, or use a method that adds noise"
)
ELSEWHERE = "what else was computed from the deleted rows: preprocessing (means, scales, vocabularies), backups, copies"
TUNING = "choices made with the deleted rows at hand: epochs, learning rate, architecture, what was tried before"
NOT_ADAPTIVE = "requests that were chosen after seeing the model"


def forget_rows(problem: Problem, run: Run, kind: type[Statistics]) -> Forgotten:
    """Take the forget set out of the problem's sums and set a copy of the model to what they then give.

    Raises:
        StateError: The state is of another kind, or of another model.
        UnknownRowError: A row was never in training, or was deleted before.
    """
    state = problem.state
    if not isinstance(state, kind):
        raise StateError(
            f"the state is of kind {getattr(state, 'kind', None)!r}, where {kind.kind!r} is needed; record one with "
            f"`expunge.record(model, task, dataset, kind={kind.kind!r})`, or choose the method for the one you have"
        )
    state.require_model(problem.model)
    rows = read_rows(problem.task, cast(MapDataset, problem.forget))
    left = state.without(*rows)
    model = run.copy(problem.model)
    left.write_to(model)
    return Forgotten(model.eval(), certify_fit(left, len(rows[0])), left.bound_to(model))


def certify_fit(left: SufficientStatistics, deleted: int) -> Certificate:
    """The certificate of a model that was fitted to the sums which are left after so many rows were taken out."""
    settings = ", ".join(f"{name} {value}" for name, value in left.options().items())
    return Certificate.exact(
        f"the same fit ({left.kind}: {settings}) to the rows that are left; it has no randomness, so it needs no noise",
        constants=_counted(deleted, len(left.rows)),
        not_covered=(RELEASED_PAIR, ELSEWHERE),
    )


def certify_shards(deleted: int, left: int, retrained: int, shards: int) -> Certificate:
    """The certificate of an ensemble of which some shards were trained afresh."""
    touched = Constant(
        name="retrained shards",
        value=retrained,
        origin=Origin.ENFORCED,
        meaning=f"of {shards}; the others never saw a deleted row",
    )
    return Certificate.exact(
        "training the ensemble afresh, by the same recipe and with the same seed, on the rows that are left",
        constants=(*_counted(deleted, left), touched),
        not_covered=(
            "whoever saw the ensemble before and after: the members that differ tell which shards lost a row",
            TUNING,
            NOT_ADAPTIVE,
            ELSEWHERE,
        ),
    )


def _counted(deleted: int, left: int) -> tuple[Constant, Constant]:
    checked = "each was checked to be among the rows that were trained on"
    return (
        Constant(name="deleted rows", value=deleted, origin=Origin.ENFORCED, meaning=checked),
        Constant(name="rows left", value=left, origin=Origin.ENFORCED, meaning="rows that the model rests on now"),
    )
