"""Measures of text from one forward pass: what a model expects at each token, when all before it are the true ones.

Everything here is a function of `TokenScores`, so that a model is run over a dataset once. Each measure names the
variant that it is, for several go by the same name.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import MissingNeedError, SettingError, ShapeError, UnsupportedTaskError
from expunge.tasks import CausalLM
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Run, over_batches

Floats = NDArray[np.float64]

LOWEST_SHARE = 0.2
"""Share of the tokens that Min-K% looks at (Shi et al. 2024, arXiv 2310.16789)."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says of the labelled tokens of each example of a dataset.

    Attributes:
        log_p: For each example the log-probability of each true token in nats: (tokens,).
        hits: Whether the true token is the model's first choice: (tokens,).
        mean: Expectation of the log-probability over the model's own distribution at each token: (tokens,).
        deviation: Its standard deviation there: (tokens,).
        texts: The labelled tokens as text, without special tokens; None where the task has no tokeniser.
    """

    log_p: Sequence[Floats]
    hits: Sequence[NDArray[np.bool_]]
    mean: Sequence[Floats]
    deviation: Sequence[Floats]
    texts: Sequence[str] | None

    @classmethod
    def of(cls, run: Run, model: nn.Module, dataset: MapDataset, *, batch_size: int = 32) -> "TokenScores":
        """Run a model over a dataset.

        Args:
            run: Whose task is a `CausalLM`.
            model: In any mode; it is run in evaluation mode.
            dataset: Examples in any form that the task takes.
            batch_size: Examples in a forward pass.

        Raises:
            UnsupportedTaskError: The task is another.
        """
        task = text_task(run)

        def measure(model: nn.Module, batch: TextBatch) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
            said = task.predictions(model, batch)
            targets = said.targets[said.mask]
            log_p = said.logits[said.mask].double().log_softmax(1)
            share, own = log_p.exp(), log_p.gather(1, targets[:, None])[:, 0]
            mean = (share * log_p.clamp(min=-1e9)).sum(1)
            spread = (share * (log_p.clamp(min=-1e9) - mean[:, None]).square()).sum(1).sqrt()
            columns = (own, log_p.argmax(1) == targets, mean, spread, targets)
            return list(zip(*(column.split(said.counts.tolist()) for column in columns), strict=True))

        rows = [row for piece in over_batches(run, model, dataset, measure, batch_size) for row in piece]
        arrays = [[column.numpy() for column in row[:4]] for row in rows]
        read = task.tokenizer
        return cls(
            [row[0] for row in arrays],
            [row[1] for row in arrays],
            [row[2] for row in arrays],
            [row[3] for row in arrays],
            None if read is None else [cast(str, read.decode(row[4], skip_special_tokens=True)) for row in rows],
        )

    @property
    def nll(self) -> Floats:
        """Mean negative log-likelihood of the tokens of each example in nats: (examples,)."""
        return self._by_example(lambda row: -self.log_p[row].mean())

    @property
    def probability(self) -> Floats:
        """Geometric mean of the tokens' probabilities: (examples,). Source: Maini et al. 2024 (arXiv 2401.06121)."""
        return np.exp(-self.nll)

    @property
    def exact_memorisation(self) -> Floats:
        """Share of tokens that are the first choice: (examples,). Source: Tirumala et al. 2022 (arXiv 2205.10770)."""
        return self._by_example(lambda row: self.hits[row].mean())

    @property
    def extraction_strength(self) -> Floats:
        """1 - k / T, where the k first of T tokens must be given for all others to follow: (examples,).

        They follow as first choices, which is what greedy decoding gives while it has been right so far. Source:
        Carlini et al. 2021 (arXiv 2012.07805); the form of Wang et al. 2025 (arXiv 2406.09179).
        """
        return self._by_example(lambda row: np.cumprod(self.hits[row][::-1]).mean())

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood over all tokens of all examples together."""
        return float(np.exp(-np.concatenate(list(self.log_p)).mean()))

    def membership(self, share: float = LOWEST_SHARE) -> dict[str, Floats]:
        """Scores of membership attacks by name, larger for members: (examples,) each.

        `loss`: mean log-likelihood (Yeom et al. 2018). `zlib`: that over the bytes of the text when zlib has compressed
        it (Carlini et al. 2021); left out where there is no text. `min-k`: mean log-likelihood of the least likely
        tokens (Shi et al. 2024). `min-k++`: the same of (log p - mean) / deviation over the model's own distribution
        at each token (Zhang et al. 2024, arXiv 2404.02936).

        Args:
            share: Of the tokens, for the last two; at least one token is taken.

        Raises:
            SettingError: `share` is out of range.
        """
        if not 0 < share <= 1:
            raise SettingError(f"share must be above 0 and at most 1, not {share!r}")
        scores = {"loss": -self.nll}
        if self.texts is not None:
            scores["zlib"] = -self.nll / np.array([len(zlib.compress(text.encode())) for text in self.texts])
        scores["min-k"] = self._by_example(lambda row: _lowest(self.log_p[row], share))
        scores["min-k++"] = self._by_example(
            lambda row: _lowest((self.log_p[row] - self.mean[row]) / np.maximum(self.deviation[row], 1e-9), share)
        )
        return scores

    def _by_example(self, measure: Callable[[int], float]) -> Floats:
        return np.array([measure(row) for row in range(len(self.log_p))], dtype=np.float64)


def leakage(auc: float, oracle_auc: float | None) -> float:
    """100 · (AUC - AUC of the oracle) / AUC of the oracle of one attack, in per cent; 0 is like retraining.

    Below 0 the model shows less than an oracle does, which is a trace of unlearning too. The variant of Shi et al.
    2024 (MUSE, arXiv 2407.06460) with the AUC of forget against holdout examples.

    Raises:
        MissingNeedError: There is no oracle.
    """
    if oracle_auc is None:
        raise MissingNeedError(
            "leakage is measured against an oracle: pass the AUC of a model retrained without the forget set, which no "
            "fixed number such as .5 stands in for"
        )
    if not (0 <= auc <= 1 and 0 < oracle_auc <= 1):
        raise SettingError(f"an AUC lies between 0 and 1, not {auc!r} or {oracle_auc!r}")
    return 100 * (auc - oracle_auc) / oracle_auc


def text_task(run: Run) -> CausalLM:
    """The task of a run; raise an UnsupportedTaskError where it is not for text."""
    if not isinstance(run.task, CausalLM):
        raise UnsupportedTaskError(f"measures of text need the task CausalLM, not {type(run.task).__name__}")
    return run.task


def equally_many(first: Sequence[object], second: Sequence[object], what: str) -> None:
    """Raise a ShapeError unless two sequences are of one length."""
    if len(first) != len(second):
        raise ShapeError(f"there are {len(first)} and {len(second)} {what}; they must belong together one by one")


def _lowest(values: Floats, share: float) -> float:
    count = int(np.ceil(share * len(values)))
    return float(np.sort(values)[:count].mean())
