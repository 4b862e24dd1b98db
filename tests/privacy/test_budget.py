"""A budget says when to retrain, and keeps count."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from expunge import Certificate, Constant, DeletionBudget, Origin, Tier
from expunge.errors import BudgetError, SavedModelError, SettingError
from expunge.privacy import gaussian_epsilon, gaussian_sigma, require_request, tier_of


@pytest.fixture
def budget() -> DeletionBudget:
    return DeletionBudget(sigma=0.01, epsilon=1.0, delta=1e-5)


def test_charges_add_up_to_the_limit(budget: DeletionBudget) -> None:
    assert budget.limit == pytest.approx(0.01 / gaussian_sigma(1, 1e-5))
    used = budget
    for _ in range(4):
        used = used.charge(budget.limit / 4.0001)
    assert used.spent == pytest.approx(budget.limit, rel=1e-4)
    assert not used.allows(budget.limit / 4)
    with pytest.raises(BudgetError, match=r"noise of sigma 0\.01 hides .* at epsilon 1 and delta 1e-05; retrain"):
        used.charge(budget.limit / 4)
    assert budget.spent == 0, "a budget is never changed in place"
    renewed = used.renew()
    assert (renewed.spent, len(renewed.releases)) == (0, 4)


def test_a_bound_on_all_requests_replaces_the_sum(budget: DeletionBudget) -> None:
    used = budget.settle(0.8 * budget.limit).settle(0.9 * budget.limit)
    assert used.spent == 0.9 * budget.limit
    assert len(used.releases) == 2


def test_models_released_together_tell_more(budget: DeletionBudget) -> None:
    one = budget.settle(budget.limit)
    assert one.joint_epsilon() == pytest.approx(1.0, rel=1e-9)
    four = one.settle(budget.limit).settle(budget.limit).settle(budget.limit)
    assert four.joint_epsilon() == pytest.approx(gaussian_epsilon(1e-5, 0.01, 2 * budget.limit))
    assert 1.5 < four.joint_epsilon() < 4


def test_it_is_kept_in_a_file(budget: DeletionBudget, tmp_path: Path) -> None:
    used = budget.charge(0.001)
    used.save(tmp_path / "budget.json")
    assert DeletionBudget.load(tmp_path / "budget.json") == used
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(SavedModelError, match="holds no deletion budget"):
        DeletionBudget.load(tmp_path / "budget.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0 and finite, not 0.0"),
        ({"delta": 1.0}, "delta must lie between 0 and 1, not 1.0"),
        ({"sigma": 0.0}, "sigma is 0.0: input should be greater than 0"),
        ({"sigma": "a", "spent": -1.0}, "sigma is 'a': .*; spent is -1.0: "),
        ({"epsilon": "a"}, "epsilon is 'a': input should be a valid number"),
        ({"sgima": 1.0}, "sgima is 1.0: extra inputs are not permitted"),
    ],
)
def test_a_budget_that_guarantees_nothing_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"sigma": 0.01, "epsilon": 1.0, "delta": 1e-5, **change}
    with pytest.raises(SettingError, match=words):
        DeletionBudget(**given)
    (tmp_path / "budget.json").write_text(json.dumps(given))
    with pytest.raises(SavedModelError, match="holds no deletion budget"):
        DeletionBudget.load(tmp_path / "budget.json")


@pytest.mark.parametrize("value", ["a", None, True])
def test_a_request_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="epsilon must be above 0 and finite"):
        require_request(value, 1e-5)
    with pytest.raises(SettingError, match="delta must lie between 0 and 1"):
        require_request(1.0, value)


def constant(origin: Origin) -> Constant:
    return Constant(name="C", value=1.0, origin=origin, meaning="largest feature norm")


def test_one_assumption_makes_a_certificate_conditional() -> None:
    for origin, tier in ((Origin.ENFORCED, Tier.CERTIFIED), (Origin.MEASURED, Tier.CERTIFIED),
                         (Origin.ASSUMED, Tier.CONDITIONAL)):  # fmt: skip
        assert origin.meaning
        assert tier_of([constant(Origin.ENFORCED), constant(origin)], []) is tier
    assert tier_of([], ["features are public"]) is Tier.CONDITIONAL


def test_a_certificate_cannot_claim_more_than_is_known() -> None:
    promise = {"reference": "retraining", "epsilon": 1.0, "delta": 1e-5, "sigma": 0.1, "sensitivity": 0.02}
    with pytest.raises(ValidationError, match="only assumed: C"):
        Certificate(tier=Tier.CERTIFIED, constants=(constant(Origin.ASSUMED),), **promise)
    with pytest.raises(ValidationError, match="only assumed: luck"):
        Certificate(tier=Tier.EXACT, conditions=("luck",), reference="retraining")
    with pytest.raises(ValidationError, match="an exact guarantee has no loss"):
        Certificate(tier=Tier.EXACT, **promise)
    with pytest.raises(ValidationError, match="needs a delta above 0"):
        Certificate(tier=Tier.CERTIFIED, **{**promise, "delta": 0.0})
    kept = Certificate(tier=Tier.CONDITIONAL, constants=(constant(Origin.ASSUMED),), **promise)
    assert kept.assumed == (constant(Origin.ASSUMED),)
    assert Certificate.model_validate_json(kept.model_dump_json()) == kept
