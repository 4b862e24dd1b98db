"""How thoroughly and how strictly to audit."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, get_args

from pydantic import TypeAdapter

from expunge.audit.image_figures import FrechetVariant, Shown
from expunge.audit.relearning import Relearning
from expunge.errors import SettingError
from expunge.settings import require_at_least, require_between, require_one_of, require_positive, require_whole


@dataclass(frozen=True)
class Margins:
    """How strictly to compare.

    Args:
        share: A difference of shares (accuracy, Tug-of-War) that is never held against a model.
        divergence: The same for divergences, in nats.
        equivalent_share: A difference of shares up to which a model counts as equivalent to retraining.
        equivalent_after: The same for shares after a model was trained again or probed, which vary more.
        equivalent_divergence: The same for divergences, in nats.
        ratio: A difference of logarithms of errors of images that is never held against a model; .05 is one in twenty.
        error_rate: Chance that a retrained model would show any deviation at all.
        power: Each measure states the smallest difference that it finds with this probability.
    """

    share: float = 0.02
    divergence: float = 0.005
    equivalent_share: float = 0.1
    equivalent_after: float = 0.2
    equivalent_divergence: float = 0.03
    ratio: float = 0.05
    error_rate: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, 0, "share", "divergence", "ratio")
        require_positive(self, "equivalent_share", "equivalent_after", "equivalent_divergence")
        require_between(self, 0, 1, "error_rate", "power")


@dataclass(frozen=True)
class PictureSettings:
    """How image-to-image models are measured besides what every model is.

    Args:
        count: At most so many pictures of each set.
        variant: Of the Fréchet distance, where there is a feature network; see `expunge.audit.images`.
        grid: A few pictures of this set stay in the evidence, side by side with what the models make of them, and the
            report shows them; those of the forget and of the retain set are then personal data, and the evidence must
            be kept and deleted like them. Where there is a feature network, so do the places of up to 100 pictures of
            this set and of the holdout in a plane (t-SNE).
    """

    count: int = 2000
    variant: FrechetVariant = "plain"
    grid: Shown | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "count")
        require_one_of(self, "variant", get_args(FrechetVariant))
        require_one_of(self, "grid", (None, *get_args(Shown)))


@dataclass(frozen=True)
class AuditSettings:
    """How thoroughly and how strictly to audit.

    Args:
        relearning: The relearning test.
        margins: What counts as a difference, and what as equivalent.
        examples: At most so many examples of each set are looked at.
        bits: Weights are also rounded to so many bits, and the forget set looked at again.
        rewording: Whether a language model is also asked about the forget set with other prompts and in other words.
        neighbours: Quality is also measured on so many retained examples nearest to the forget set; 0 for none.
        pictures: Of image-to-image models.
    """

    relearning: Relearning = field(default_factory=Relearning)
    margins: Margins = field(default_factory=Margins)
    examples: int = 10_000
    bits: tuple[int, ...] = (8, 4)
    neighbours: int = 100
    rewording: bool = True
    pictures: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "examples")
        require_whole(self, "neighbours", least=0)
        if any(not 2 <= bits <= 16 for bits in self.bits):
            raise SettingError(f"bits must lie between 2 and 16, not {self.bits}")

    def described(self, *, pictures: bool) -> dict[str, Any]:
        """As evidence keeps them, without those of pictures where the task has none."""
        left_out = None if pictures else {"pictures": True, "margins": {"ratio"}}
        return TypeAdapter(AuditSettings).dump_python(self, mode="json", exclude=left_out)


class Level(StrEnum):
    """How much an audit costs, and how much it can see."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"

    @property
    def oracles(self) -> int:
        """How many oracles are trained: enough to see what is gross, a mask on a logit, or less than that."""
        return {Level.QUICK: 3, Level.STANDARD: 10, Level.THOROUGH: 20}[self]

    @property
    def shadows(self) -> int:
        """How many shadows are trained and unlearned, for what can be told example by example."""
        return 20 if self is Level.THOROUGH else 0

    @property
    def settings(self) -> AuditSettings:
        """What is measured."""
        if self is Level.QUICK:
            relearning = Relearning(steps=(0, 5, 10, 20), measured_on=500)
            return AuditSettings(relearning, examples=2_000, bits=(), neighbours=0, rewording=False)
        if self is Level.STANDARD:
            return AuditSettings()
        return AuditSettings(Relearning(steps=(0, 5, 10, 20, 40, 80), retained_only=True), examples=50_000)
