"""A recipe for models that are a formula of sums over the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.states.normal_classes import DiscriminantStatistics, NaiveBayesStatistics
from expunge.states.ridge import RidgeStatistics
from expunge.states.statistics import SufficientStatistics, read_rows
from expunge.tasks import Task

_KINDS: dict[str, type[SufficientStatistics]] = {
    kind.kind: kind for kind in (RidgeStatistics, NaiveBayesStatistics, DiscriminantStatistics)
}


@dataclass(frozen=True)
class ClosedForm:
    """Fit a model by its formula, as the exact methods refit it.

    Args:
        build: Makes a model, whose parameters are then set.
        task: What it is for.
        kind: `ridge`, `naive-bayes` or `lda`.
        settings: Of that kind by name, as `expunge.record` takes them: `{"penalty": 1.0}`.
    """

    build: Callable[[], nn.Module]
    task: Task
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in _KINDS:
            raise SettingError(f"kind must be one of {', '.join(_KINDS)}, not {self.kind!r}")

    def __call__(self, dataset: MapDataset, seed: int) -> nn.Module:
        """Fit to `dataset`; nothing in it is random, so the seed changes nothing."""
        model, kind = self.build(), _KINDS[self.kind]
        statistics = kind.of(*read_rows(self.task, dataset), **kind.settings_for(model, self.task, self.settings))
        statistics.write_to(model)
        return model.eval()
