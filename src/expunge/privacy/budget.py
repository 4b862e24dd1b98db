"""How many deletions a guarantee lasts for, when the noise is fixed beforehand."""

import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from expunge.errors import BudgetError, SavedModelError, SettingError
from expunge.privacy.mechanisms import gaussian_epsilon, gaussian_sigma, require_request
from expunge.storage import write_json


class DeletionBudget(BaseModel):
    """Distance from retraining that noise of a fixed scale can hide, and how much of it is used up.

    A budget is never changed in place: `charge` and `settle` return the next one.

    Attributes:
        sigma: Standard deviation of the noise on each weight, fixed before any request.
        epsilon: Privacy loss of each released model against its own reference.
        delta: Probability with which the loss may be larger.
        spent: Bound on the distance of the weights before noise from retraining, over all requests so far.
        releases: That distance at each model released.

    Raises:
        SettingError: A number cannot be used.

    Example:
        >>> budget = DeletionBudget(sigma=0.01, epsilon=1.0, delta=1e-5)
        >>> budget = budget.charge(0.001).charge(0.001)
        >>> round(budget.left, 6)
        0.000681
        >>> budget.allows(0.001)
        False
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma: float = Field(gt=0, allow_inf_nan=False)
    epsilon: float
    delta: float
    spent: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    releases: tuple[float, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _is_a_guarantee(cls, data: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            budget = check(data)
        except ValidationError as error:
            wrong = [(".".join(str(part) for part in each["loc"]), each) for each in error.errors()]
            told = "; ".join(f"{name} is {each['input']!r}: {each['msg'].lower()}" for name, each in wrong)
            raise SettingError(f"a deletion budget cannot be made of these numbers: {told}") from error
        require_request(budget.epsilon, budget.delta)
        return budget

    @property
    def limit(self) -> float:
        """Largest distance that the noise hides at (epsilon, delta)."""
        return self.sigma / gaussian_sigma(self.epsilon, self.delta)

    @property
    def left(self) -> float:
        """Distance that may still be added."""
        return max(self.limit - self.spent, 0.0)

    def allows(self, distance: float) -> bool:
        """Whether a request that adds `distance` can be met without retraining."""
        return self.spent + distance <= self.limit

    def charge(self, distance: float) -> Self:
        """The budget after a request that moved the weights at most `distance` further from retraining.

        Use it where each request's bound speaks of that request alone, so that bounds add up.

        Raises:
            BudgetError: The budget does not reach; retrain, and `renew` it.
        """
        return self.settle(self.spent + distance)

    def settle(self, distance: float) -> Self:
        """The budget after a request whose bound speaks of all requests so far, as a measured residual does.

        Raises:
            BudgetError: The budget does not reach; retrain, and `renew` it.
        """
        if not 0 <= distance <= self.limit:
            raise BudgetError(
                f"the weights may be {distance:.3g} from those of retraining, and noise of sigma {self.sigma:g} hides "
                f"{self.limit:.3g} at epsilon {self.epsilon:g} and delta {self.delta:g}; retrain, or accept more noise "
                "or a larger epsilon from the start"
            )
        return self.model_copy(update={"spent": distance, "releases": (*self.releases, distance)})

    def renew(self) -> Self:
        """The budget after retraining. Models released before stay released, and count on in `joint_epsilon`."""
        return self.model_copy(update={"spent": 0.0})

    def joint_epsilon(self, delta: float | None = None) -> float:
        """Privacy loss of all released models together, to somebody who holds every one of them.

        Gaussian mechanisms compose to one Gaussian mechanism whose squared ratio of sensitivity to sigma is the sum
        (Dong, Roth and Su 2022, *Gaussian Differential Privacy*, corollary 3.3).
        """
        ratio = math.sqrt(sum((distance / self.sigma) ** 2 for distance in self.releases))
        return gaussian_epsilon(self.delta if delta is None else delta, 1.0, ratio)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        write_json(Path(path), self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SavedModelError: The file is missing or holds no budget.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except (OSError, ValidationError, SettingError) as error:
            raise SavedModelError(f"{path} holds no deletion budget ({error}); restore it from a copy") from error
