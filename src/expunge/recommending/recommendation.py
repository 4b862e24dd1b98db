"""Try the suitable methods on a rehearsal, rank them by the audit's gap, and run the winner on the real request."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from expunge.audit.auditing import References
from expunge.audit.choosing import FleetSettings
from expunge.audit.gap import gap, gaps_of_oracles
from expunge.audit.measuring import Announce
from expunge.audit.settings import AuditSettings, Level
from expunge.errors import DivergedError, ExpungeError, MissingNeedError, SettingError
from expunge.methods import FineTune, Method, Stage
from expunge.problem import Problem
from expunge.recommending.budget import Budget
from expunge.recommending.candidates import BATCH, CANDIDATES, Candidate, Spending
from expunge.recommending.rehearsal import Rehearsal, rehearse
from expunge.recommending.shelf import TrialShelf, Tried
from expunge.training import Execution, Supervised, bar
from expunge.training.seeds import derive
from expunge.unlearning import Choice, TrialRecord, Unlearned, unlearn
from expunge.unlearning.record import plain

RATES = (1.0, 4.0, 16.0)
_TIMED_STEPS = 10
_MANY_PASSES = 100  # more than any candidate needs
_LEEWAY = 1.1  # times the budget, for whole epochs
_LAST_STEP = 2  # batches beyond it, one of each set


@dataclass(frozen=True)
class Recommendation:
    """Which method came nearest to retraining in a rehearsal.

    Attributes:
        problem: The real request.
        method: For it, within the budget.
        choice: The ranking, and how it came about, as the record of a run holds it.
    """

    problem: Problem
    method: Method
    choice: Choice

    def unlearn(
        self,
        *,
        seed: int = 0,
        execution: Execution | None = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
    ) -> Unlearned:
        """Run the method on the real request; the record holds the ranking. See `expunge.unlearn`."""
        return unlearn(
            self.problem, self.method, seed=seed, execution=execution, checkpoint_dir=checkpoint_dir, resume=resume
        ).chosen_by(self.choice)


def recommend(
    problem: Problem,
    *,
    budget: float | str | Budget = 0.2,
    seed: int = 0,
    oracles: int = 3,
    rates: Sequence[float] = RATES,
    candidates: Mapping[str, Candidate] | None = None,
    settings: AuditSettings | None = None,
    execution: Execution | None = None,
    fleet: FleetSettings | None = None,
    announce: Announce | None = None,
) -> Recommendation:
    """Try the suitable methods on a request made up from retained data, and rank them by their gap to retraining.

    The rehearsal resembles the request: other classes for classes, rows as easy for the model for rows. Its oracles
    are trained on all other data, those of the real request included, and kept in the cache of the fleet, as are the
    outcomes of the trials: what was killed goes on, and `expunge cache --clear` removes them.

    Args:
        problem: The request, with forget set, retain set and recipe.
        budget: Of the real run, as a share of a retrain (0.2 or '20%') or in seconds ('90 s').
        seed: Of everything random.
        oracles: How many to hold each trial against; two are enough to rank.
        rates: Multiples of each method's published rate that are tried.
        candidates: Methods to try instead of those of the library.
        settings: Of the audit of each trial; by default those of the level `quick`.
        execution: Device, precision, progress.
        fleet: Where and in which way oracles are trained and kept.
        announce: Is told what the oracles will cost before any is trained.

    Raises:
        MissingNeedError: The problem has no forget set, no retain set or no recipe, or lacks what each candidate needs.
        ForgetSetError: Too little is kept to rehearse with.
        SettingError: The budget, a rate or the candidates cannot be used, or no trial came to a result within it.
    """
    wanted, execution = Budget.read(budget), execution or Execution()
    _require_rates(rates)
    given = CANDIDATES if candidates is None else candidates
    _require_candidates(given)
    if problem.recipe is None:
        raise MissingNeedError("methods are ranked by their distance from retraining: give the problem `recipe=`")
    rehearsal = rehearse(problem, seed, execution)
    _require_one_suitable(given, problem, rehearsal.problem)
    trials = _Trials.prepare(
        rehearsal,
        derive(seed, "recommend") % 2**31,
        execution,
        References.prepare(
            rehearsal.problem,
            oracles,
            seed=derive(seed, "recommend") % 2**31,
            settings=settings or Level.QUICK.settings,
            execution=execution,
            fleet=fleet,
            announce=announce,
        ),
        fleet,
    )
    amount = _examples(trials, wanted)
    here, there = Spending.of(problem, amount), Spending.of(rehearsal.problem, amount)
    suitable, left_out = _suitable(given, problem, rehearsal.problem, here, there)
    if not suitable:
        raise _none_suitable(left_out)
    methods = {(name, rate): given[name].make(there, rate) for name in suitable for rate in rates}
    tried, refused = trials.run(methods)
    left_out |= refused
    ranking = sorted(tried, key=lambda key: (_order(tried[key]), key))
    allowed = [key for key in ranking if _allowed(tried[key], wanted, there)]
    if not allowed:
        reasons = "".join(f"; {name}: {reason}" for name, reason in refused.items())
        advice = "raise the budget, or name other rates"
        raise SettingError(f"no method came to a result within {wanted} in the rehearsal; {advice}{reasons}")
    name, rate = allowed[0]
    choice = Choice(
        budget=str(wanted),
        rehearsal=rehearsal.likeness,
        oracles=oracles,
        gaps_of_oracles=trials.gaps_of_oracles(),
        ranking=[_trial(each, given[each[0]].make(there, each[1]), tried[each], wanted, there) for each in ranking],
        chosen=ranking.index(allowed[0]),
        left_out=left_out,
    )
    return Recommendation(problem, given[name].make(here, rate), choice)


@dataclass(frozen=True)
class _Trials:
    """Methods on the rehearsal, each held against its oracles."""

    rehearsal: Rehearsal
    seed: int
    execution: Execution
    references: References
    shelf: TrialShelf

    @classmethod
    def prepare(
        cls,
        rehearsal: Rehearsal,
        seed: int,
        execution: Execution,
        references: References,
        fleet: FleetSettings | None,
    ) -> "_Trials":
        shelf = TrialShelf.open(references, execution, (fleet or FleetSettings()).cache)
        return cls(rehearsal, seed, replace(execution, progress=False), references, shelf)

    def run(self, methods: Mapping[tuple[str, float], Method]) -> tuple[dict[tuple[str, float], Tried], dict[str, str]]:
        """The outcome of each, and by name what those said that refused once they saw the model or the data."""
        found: dict[tuple[str, float], Tried] = {}
        refused: dict[str, str] = {}
        with bar("trying methods", len(methods), enabled=self.references.sitting.run.execution.progress) as display:
            for (name, rate), method in methods.items():
                if name not in refused:
                    try:
                        found[name, rate] = self.tried(method)
                    except ExpungeError as error:
                        refused[name] = str(error)
                display.advance(1, name)
        return found, refused

    def tried(self, method: Method) -> Tried:
        """The outcome of one method, from the cache if it was tried before."""
        known = self.shelf.load(method, self.seed)
        if known is None:
            known = self._outcome(method)
            self.shelf.save(method, self.seed, known)
        return known

    def _outcome(self, method: Method) -> Tried:
        started = time.monotonic()
        try:
            done = unlearn(self.rehearsal.problem, method, seed=self.seed, execution=self.execution)
        except DivergedError:
            return Tried(None, time.monotonic() - started, 0)
        return Tried(gap(self.references.compare(done)), done.record.seconds, done.record.examples)

    def gaps_of_oracles(self) -> list[float]:
        """What an oracle comes to among the others."""
        nothing = FineTune((Stage(1e-12, steps=1),), weight_decay=0.0)
        done = unlearn(self.rehearsal.problem, nothing, seed=self.seed, execution=self.execution)
        return gaps_of_oracles(self.references.compare(done))


def _examples(trials: _Trials, budget: Budget) -> float:
    """Examples that may pass forward and backward.

    By the recipe's epochs where the budget is a share and the recipe says them, so that nothing depends on a clock.
    """
    problem, seconds = trials.rehearsal.problem, trials.references.oracles.seconds
    recipe, rows = problem.recipe, len(cast("Sequence[object]", problem.retain))
    share = budget.share
    if share is None:
        if not seconds:
            raise SettingError("how long a retrain takes is not known here; give the budget as a share, such as '20%'")
        share = cast(float, budget.seconds) / (sum(seconds) / len(seconds))
        if share > 1:
            return recipe.epochs * rows if isinstance(recipe, Supervised) else float(rows)
    if isinstance(recipe, Supervised):
        return share * recipe.epochs * rows
    if not seconds:
        raise SettingError("how long a retrain takes is not known here; use a `Supervised` recipe, or name a method")
    steps = FineTune((Stage(1e-12, steps=_TIMED_STEPS),), weight_decay=0.0, batch_size=min(BATCH, rows))
    done = unlearn(problem, steps, seed=trials.seed, execution=trials.execution)
    return share * (sum(seconds) / len(seconds)) * done.record.examples / done.record.seconds


def _suitable(
    candidates: Mapping[str, Candidate], problem: Problem, other: Problem, here: Spending, there: Spending
) -> tuple[list[str], dict[str, str]]:
    """Names of the methods that can be run on both, and why the others cannot."""
    fit: list[str] = []
    left_out: dict[str, str] = {}
    for name, candidate in candidates.items():
        if candidate.retained(here) < 1:
            left_out[name] = "reads the retain set more often than the budget pays for"
            continue
        try:
            candidate.make(here, 1.0).require(problem)
            candidate.make(there, 1.0).require(other)
        except ExpungeError as error:
            left_out[name] = str(error)
        else:
            fit.append(name)
    return fit, left_out


def _require_one_suitable(candidates: Mapping[str, Candidate], problem: Problem, other: Problem) -> None:
    """Before oracles are trained: whatever the budget, one method at least has what it needs."""
    rows = len(cast("Sequence[object]", problem.retain))
    here, there = (Spending.of(each, _MANY_PASSES * rows) for each in (problem, other))
    suitable, left_out = _suitable(candidates, problem, other, here, there)
    if not suitable:
        raise _none_suitable(left_out)


def _none_suitable(reasons: Mapping[str, str]) -> MissingNeedError:
    found = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return MissingNeedError(f"no method can be tried on this request: {found}")


def _require_rates(rates: object) -> None:
    given = cast("Sequence[object]", rates) if isinstance(rates, Sequence) else ()
    if not given or any(not isinstance(rate, int | float) or not 0 < rate < float("inf") for rate in given):
        raise SettingError(f"rates must be multiples above 0 of published rates, such as (1, 4, 16), not {rates!r}")


def _require_candidates(candidates: Mapping[str, object]) -> None:
    if not candidates:
        raise SettingError("candidates is empty; name a method to try, or leave it out to try those of the library")
    for name, candidate in candidates.items():
        if not isinstance(candidate, Candidate):
            raise SettingError(
                f"candidates[{name!r}] is {candidate!r}; give `expunge.recommending.Candidate(FineTune, make)`, where "
                "`make` takes a Spending and a multiple of the rate, and returns an instance"
            )


def _order(outcome: Tried) -> float:
    return float("inf") if outcome.gap is None else outcome.gap


def _allowed(outcome: Tried, budget: Budget, spending: Spending) -> bool:
    """Whether a trial came to a result within the budget, in seconds, or in examples where it is a share."""
    if budget.seconds is not None:
        return outcome.gap is not None and outcome.seconds <= budget.seconds
    most = _LEEWAY * spending.examples + _LAST_STEP * spending.batch_size
    return outcome.gap is not None and outcome.examples <= most


def _trial(key: tuple[str, float], method: Method, outcome: Tried, budget: Budget, spending: Spending) -> TrialRecord:
    note = "diverged" if outcome.gap is None else "" if _allowed(outcome, budget, spending) else "over the budget"
    settings = plain(dataclasses.asdict(method))
    return TrialRecord(
        method=key[0], rate=key[1], settings=settings, gap=outcome.gap, seconds=outcome.seconds, note=note
    )
