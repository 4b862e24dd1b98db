"""The benchmark measures of TOFU (Maini et al. 2024, arXiv 2401.06121): truth ratio, forget quality, model utility."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from torch import nn

from expunge.audit.text import Floats, TokenScores, equally_many
from expunge.audit.text_written import rouge_l, write
from expunge.errors import DataError, MissingNeedError, NonFiniteDataError, SettingError
from expunge.training import Run

Row = Mapping[str, Any]

UTILITY_PARTS = ("retain", "real_authors", "world_facts")


class TruthRatio(StrEnum):
    """How wrong answers are averaged; papers and code differ, and a figure means little without its variant."""

    GEOMETRIC = "geometric"
    """Mean of the mean losses, then exp: forget quality of TOFU, and everything in OpenUnlearning."""
    ARITHMETIC = "arithmetic"
    """Mean of the probabilities: model utility of TOFU."""


def truth_ratio(wrong: Sequence[ArrayLike], right: ArrayLike, variant: TruthRatio) -> Floats:
    """Probability of wrong answers over that of the right one, both normalised by length: (examples,).

    Args:
        wrong: For each example the mean negative log-likelihood of each wrong answer in nats.
        right: (examples,) that of the right answer, in other words where there are some.
        variant: How wrong answers are averaged.

    Raises:
        ShapeError: Wrong and right answers are not of the same examples.
    """
    true = np.asarray(right, dtype=np.float64)
    equally_many(wrong, true.tolist(), "examples")
    losses = [np.asarray(each, dtype=np.float64) for each in wrong]
    if variant is TruthRatio.GEOMETRIC:
        return np.exp(true - np.array([each.mean() for each in losses]))
    return np.array([np.exp(-each).mean() for each in losses]) / np.exp(-true)


def truth_ratios(run: Run, model: nn.Module, rows: Sequence[Row], variant: TruthRatio) -> Floats:
    """Truth ratio of each row with `question`, `perturbed_answer` and `paraphrased_answer` or `answer`: (examples,).

    Raises:
        DataError: A row lacks them.
    """
    right, wrong = answer_losses(run, model, rows)
    return truth_ratio(wrong, right, variant)


def answer_losses(run: Run, model: nn.Module, rows: Sequence[Row]) -> tuple[Floats, list[Floats]]:
    """Mean NLL of the right answer, (examples,), and of each wrong one, in nats.

    Raises:
        DataError: A row lacks a question, an answer, or wrong answers.
    """
    for number, row in enumerate(rows):
        if not ("question" in row and "answer" in row and row.get("perturbed_answer")):
            raise DataError(f"row {number} lacks `question`, `answer` or wrong answers in `perturbed_answer`")
    asked = [{"question": row["question"], "answer": row.get("paraphrased_answer", row["answer"])} for row in rows]
    false = [{"question": row["question"], "answer": each} for row in rows for each in row["perturbed_answer"]]
    losses = TokenScores.of(run, model, false).nll
    ends = np.cumsum([len(row["perturbed_answer"]) for row in rows])[:-1]
    return TokenScores.of(run, model, asked).nll, np.split(losses, ends)


def forget_quality(ratios: ArrayLike, oracle_ratios: ArrayLike | None) -> float:
    """p-value of a two-sided Kolmogorov-Smirnov test between the truth ratios of a model and of an oracle.

    Large where no difference was found, which is no proof that there is none, and small also where the model is
    farther from knowing than an oracle. With 40 examples the test has little power.

    Args:
        ratios: (examples,) truth ratios on the forget set, geometric.
        oracle_ratios: The same of a model retrained without the forget set.

    Raises:
        MissingNeedError: There is no oracle.
        NonFiniteDataError: A ratio is NaN.
    """
    if oracle_ratios is None:
        raise MissingNeedError(
            "forget quality compares with an oracle: pass the truth ratios of a model retrained without the forget set"
        )
    own, other = np.asarray(ratios, dtype=np.float64), np.asarray(oracle_ratios, dtype=np.float64)
    if np.isnan(own).any() or np.isnan(other).any():
        raise NonFiniteDataError("a truth ratio is NaN; look for diverged training")
    return float(cast(Any, stats.ks_2samp(own, other)).pvalue)


def utility_of(run: Run, model: nn.Module, rows: Sequence[Row], *, options: bool) -> dict[str, float]:
    """Probability, ROUGE-L recall and truth ratio of one part of model utility, each in [0, 1], larger is better.

    Args:
        run: Whose task is a `CausalLM` with a tokeniser.
        model: A Hugging Face model.
        rows: Questions with right and wrong answers.
        options: Whether the probability is that of the answer over all options, as TOFU has it for real authors and
            world facts, instead of the answer's own, as for the retain set.
    """
    right, wrong = answer_losses(run, model, rows)
    asked = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    own = TokenScores.of(run, model, asked).probability
    others = np.array([np.exp(-each).sum() for each in wrong])
    told = write(run, model, asked)
    ratios = truth_ratio(wrong, right, TruthRatio.ARITHMETIC)
    return {
        "probability": float((own / (own + others)).mean() if options else own.mean()),
        "ROUGE-L recall": float(rouge_l(told.written, told.wanted)["recall"].mean()),
        "truth ratio": float(np.maximum(0, 1 - ratios).mean()),
    }


def model_utility(parts: Mapping[str, Mapping[str, float]]) -> float:
    """Harmonic mean of the nine figures of three parts, as `utility_of` gives them; 0 where one of them is 0.

    Raises:
        SettingError: There are other parts than `retain`, `real_authors` and `world_facts`, or figures out of [0, 1].
    """
    if set(parts) != set(UTILITY_PARTS):
        raise SettingError(
            f"model utility is made of {', '.join(UTILITY_PARTS)}, not of {', '.join(parts) or 'nothing'}"
        )
    figures = [figure for part in UTILITY_PARTS for figure in parts[part].values()]
    if len(figures) != 9 or not all(0 <= figure <= 1 for figure in figures):
        raise SettingError(f"model utility is made of nine figures between 0 and 1, not of {figures}")
    return 0.0 if min(figures) == 0 else float(stats.hmean(figures))
