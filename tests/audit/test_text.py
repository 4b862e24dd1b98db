"""Measures of text against their formulas, written out, and against a model that is run one token at a time."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import tiny
import words
from expunge import Run
from expunge.audit.text import TokenScores, leakage
from expunge.audit.text_written import extraction_likelihood, overlap, rouge_l, write
from expunge.audit.tofu import (
    TruthRatio,
    answer_losses,
    forget_quality,
    model_utility,
    truth_ratio,
    truth_ratios,
    utility_of,
)
from expunge.errors import (
    ContextError,
    DataError,
    MissingNeedError,
    NonFiniteDataError,
    SettingError,
    ShapeError,
    TokenizerError,
    UnsupportedTaskError,
)
from expunge.tasks import CausalLM


@pytest.fixture
def run() -> Run:
    return Run(words.TASK, execution=tiny.QUIET)


@pytest.fixture(scope="module")
def model() -> Any:
    return words.recipe(epochs=12)(words.facts(), seed=0)


def scores(*rows: tuple[list[float], list[bool]]) -> TokenScores:
    """Scores of examples of which only log-probabilities and hits matter."""
    log_p = [np.log(np.array(row[0])) for row in rows]
    zeros = [np.zeros(len(row[0])) for row in rows]
    return TokenScores(log_p, [np.array(row[1]) for row in rows], zeros, [each + 1 for each in zeros], None)


def test_measures_equal_their_formulas() -> None:
    found = scores(([0.5, 0.25, 0.8], [True, False, True]), ([0.1, 0.9], [False, True]), ([0.4], [True]))
    assert found.nll == pytest.approx([-math.log(0.5 * 0.25 * 0.8) / 3, -math.log(0.09) / 2, -math.log(0.4)])
    assert found.probability == pytest.approx([0.1 ** (1 / 3), 0.3, 0.4])
    assert found.exact_memorisation == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert found.perplexity == pytest.approx((0.5 * 0.25 * 0.8 * 0.1 * 0.9 * 0.4) ** (-1 / 6))
    # Given k tokens the rest follows: 2 of 3 must be given, 1 of 2, none of 1.
    assert found.extraction_strength == pytest.approx([1 - 2 / 3, 1 - 1 / 2, 1.0])


def test_extraction_strength_needs_an_unbroken_end() -> None:
    found = scores(([0.5] * 4, [True, True, True, False]), ([0.5] * 4, [False, True, True, True]))
    assert found.extraction_strength.tolist() == [0.0, 0.75]


def test_membership_scores_equal_their_formulas() -> None:
    log_p = [np.log([0.5, 0.01, 0.2, 0.9, 0.3])]
    mean, deviation = [np.array([-1.0, -2.0, -1.5, -0.5, -1.0])], [np.array([0.5, 1.0, 2.0, 0.25, 0.4])]
    found = TokenScores(log_p, [np.ones(5, dtype=bool)], mean, deviation, ["in rome ."]).membership(0.4)
    assert found["loss"] == pytest.approx([log_p[0].mean()])
    assert found["zlib"] == pytest.approx([log_p[0].mean() / len(zlib.compress(b"in rome ."))])
    assert found["min-k"] == pytest.approx([(math.log(0.01) + math.log(0.2)) / 2])
    standard = sorted((log_p[0] - mean[0]) / deviation[0])
    assert found["min-k++"] == pytest.approx([(standard[0] + standard[1]) / 2])
    with pytest.raises(SettingError, match="share must be above 0"):
        scores(([0.5], [True])).membership(0.0)


def test_scores_are_those_of_one_example_at_a_time(run: Run, model: Any) -> None:
    found = TokenScores.of(run, model, words.facts(), batch_size=5)
    for number in (0, 7, 23):
        row = words.TASK.tokenized(words.facts()).dataset[number]
        with torch.no_grad():
            logits = model(input_ids=row["input_ids"][None]).logits[0].double()
        places = (row["labels"] != -100).nonzero()[:, 0]
        shares = logits[places - 1].softmax(1).numpy()
        tokens = row["labels"][places].numpy()
        assert found.log_p[number] == pytest.approx(
            [math.log(p[t]) for p, t in zip(shares, tokens, strict=True)], abs=1e-5
        )
        assert found.hits[number].tolist() == (shares.argmax(1) == tokens).tolist()
        means = [(p * np.log(p)).sum() for p in shares]
        assert found.mean[number] == pytest.approx(means, abs=1e-5)
        spread = [math.sqrt((p * (np.log(p) - mean) ** 2).sum()) for p, mean in zip(shares, means, strict=True)]
        assert found.deviation[number] == pytest.approx(spread, abs=1e-5)
    assert found.texts is not None
    assert found.texts[0] == words.facts()[0]["answer"]


def test_written_text_is_the_greedy_continuation(run: Run, model: Any) -> None:
    asked = words.facts()[:5]
    told = write(run, model, asked, batch_size=2)
    assert told.wanted == [fact["answer"] for fact in asked]
    read = words.tokenizer()
    for fact, text in zip(asked, told.written, strict=True):
        row = words.TASK.tokenized([fact]).dataset[0]
        wanted = int((row["labels"] != -100).sum())
        tokens, start = row["input_ids"][row["labels"] == -100].tolist(), int((row["labels"] == -100).sum())
        while len(tokens) < start + wanted and tokens[-1] != read.eos_token_id:
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert text == read.decode(tokens[start:], skip_special_tokens=True)
    with pytest.raises(DataError, match="no prompt to answer"):
        write(run, model, ["ann live in rome ."])
    with pytest.raises(TokenizerError, match="give the task a tokenizer"):
        write(Run(CausalLM(), execution=tiny.QUIET), model, [[3, 4]])


def greedy(model: Any, prompt: list[int], most: int) -> list[int]:
    """A model that is run one token at a time, until it ends."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most:
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == words.tokenizer().eos_token_id:
            return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def endless() -> Any:
    """Reads 16 tokens, and writes others at every place, never the end."""
    torch.manual_seed(0)
    model = words.gpt2(n_positions=16, initializer_range=0.7)
    with torch.no_grad():
        model.transformer.wte.weight[1] = 0
    return model.eval()


# Each fits 16 tokens, yet the longest prompt and the longest answer together do not.
NEAR_THE_LIMIT = [
    ("where does ann live ?", "rome"),
    ("where ?", "ann is a cook . bob is"),
    ("?", "ann is a nurse ."),
    ("what is the job of ?", "a"),
]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_examples_that_fit_the_context_are_written_to_their_end(run: Run, endless: Any, batch_size: int) -> None:
    rows = words.TASK.tokenized(NEAR_THE_LIMIT).dataset
    parts = [[row["input_ids"][row["labels"] == -100].tolist(), int((row["labels"] != -100).sum())] for row in rows]
    widths = [len(row["input_ids"]) for row in rows]
    assert max(widths) <= 16 < max(len(prompt) for prompt, _ in parts) + max(length for _, length in parts)
    read = words.tokenizer()

    def alone(prompt: list[int], most: int) -> str:
        return read.decode(greedy(endless, prompt, most), skip_special_tokens=True)

    told = write(run, endless, NEAR_THE_LIMIT, batch_size=batch_size)
    assert told.written == [alone(prompt, length) for prompt, length in parts]
    told = write(run, endless, NEAR_THE_LIMIT, longest=30, batch_size=batch_size)
    assert told.written == [alone(prompt, 16 - len(prompt)) for prompt, _ in parts], "until the context is full"


def test_the_extraction_likelihood_of_a_text_that_fills_the_context(run: Run, endless: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, len(words.WORDS), (16,), generator=generator).tolist()} for _ in range(2)]
    found = extraction_likelihood(run, endless, rows, words=1, batch_size=5)
    for row, figure in zip(rows, found, strict=True):
        tokens = row["input_ids"]
        shares = [overlap(greedy(endless, tokens[:cut], 16 - cut), tokens[cut:], 1) for cut in range(1, 16)]
        assert figure == pytest.approx(float(np.mean(shares)))


def test_what_a_model_cannot_read_is_counted(run: Run, endless: Any) -> None:
    longer = ("where does ann live ?", "ann live in rome . " * 4)
    with pytest.raises(ContextError, match=r"1 of 2 examples need more tokens than the 16 that the model can read"):
        write(run, endless, [NEAR_THE_LIMIT[0], longer])
    with pytest.raises(ContextError, match=r"than the 16 that the model can read \(the longest 17\)"):
        extraction_likelihood(run, endless, [{"input_ids": [3] * 17}])


def test_rouge_l_is_the_longest_common_subsequence_of_words() -> None:
    found = rouge_l(["ann lives in rome", "nothing"], ["ann lives quietly in the town of rome", "bob"])
    assert found["recall"] == pytest.approx([4 / 8, 0])
    assert found["F1"] == pytest.approx([2 * (4 / 8) * (4 / 4) / (4 / 8 + 4 / 4), 0])
    with pytest.raises(ShapeError, match="1 and 2 texts"):
        rouge_l(["a"], ["a", "b"])


def test_overlap_counts_the_runs_of_tokens_that_occur() -> None:
    assert overlap([1, 2, 3, 9], [5, 1, 2, 3], 2) == pytest.approx(2 / 3)
    assert overlap([1], [1, 2], 2) == 0


def test_extraction_likelihood_is_a_mean_over_places(run: Run, model: Any) -> None:
    facts = words.facts()[:4]
    found = extraction_likelihood(run, model, facts, words=2, batch_size=3)
    for fact, figure in zip(facts, found, strict=True):
        row = words.TASK.tokenized([fact]).dataset[0]
        tokens, first = row["input_ids"].tolist(), int((row["labels"] == -100).sum())
        shares = []
        assert tokens[-1] == words.tokenizer().eos_token_id
        for cut in range(first, len(tokens) - 2):
            true = tokens[cut:-1]
            shares.append(overlap(greedy(model, tokens[:cut], len(true)), true, 2))
        assert figure == pytest.approx(float(np.mean(shares)))
    assert np.isnan(extraction_likelihood(run, model, facts[:1], words=10)).all()


def test_extraction_likelihood_needs_as_many_labelled_tokens_as_a_run_has(run: Run, model: Any) -> None:
    facts = words.facts()[:1]
    labelled = int((words.TASK.tokenized(facts).dataset[0]["labels"] != -100).sum()) - 1  # without the end
    assert 0 <= extraction_likelihood(run, model, facts, words=labelled)[0] <= 1
    assert np.isnan(extraction_likelihood(run, model, facts, words=labelled + 1)).all()
    whole = [{"input_ids": list(range(3, 8))}]  # no prompt: the first token is given
    assert 0 <= extraction_likelihood(run, model, whole, words=4)[0] <= 1
    assert np.isnan(extraction_likelihood(run, model, whole, words=5)).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_the_extraction_likelihood_of_what_is_known_by_heart_is_one(run: Run, count: int) -> None:
    """Of answers of five tokens and an end, and of texts with an end within."""
    facts, end = words.facts()[:2], int(words.tokenizer().eos_token_id)
    torn = [{"input_ids": [3, 5, 7, 8, 9, 10, 11, end, 12, 13, 14, 15, 16, 17, end]}]
    torch.manual_seed(0)
    model = words.gpt2()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = [words.TASK.collate(words.TASK.tokenized(each).dataset) for each in (facts, torn)]
    for _ in range(60):
        for batch in batches:
            words.TASK.losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert TokenScores.of(run, model.eval(), facts).exact_memorisation.tolist() == [1.0, 1.0]
    assert extraction_likelihood(run, model, facts, words=count).tolist() == [1.0, 1.0]
    assert extraction_likelihood(run, model, torn, words=count).tolist() == [1.0]


WRONG, RIGHT = [[1.0, 3.0], [0.5, 0.5]], [2.0, 1.0]


def test_the_two_truth_ratios() -> None:
    geometric = truth_ratio(WRONG, RIGHT, TruthRatio.GEOMETRIC)
    assert geometric == pytest.approx([math.exp(-2.0) / math.exp(-2.0), math.exp(-0.5) / math.exp(-1)])
    arithmetic = truth_ratio(WRONG, RIGHT, TruthRatio.ARITHMETIC)
    assert arithmetic == pytest.approx(
        [(math.exp(-1) + math.exp(-3)) / 2 / math.exp(-2), math.exp(-0.5) / math.exp(-1)]
    )
    with pytest.raises(ShapeError, match="2 and 1 examples"):
        truth_ratio(WRONG, [1.0], TruthRatio.GEOMETRIC)


def perturbed() -> list[dict[str, Any]]:
    rows = []
    for fact in words.facts()[::2][:6]:
        name = fact["person"]
        wrong = [f"{name} live in {town} ." for town in words.TOWNS if town not in fact["answer"]][:3]
        rows.append(
            {**fact, "paraphrased_answer": fact["answer"].removeprefix(f"{name} live "), "perturbed_answer": wrong}
        )
    return rows


def test_truth_ratios_of_a_model_are_made_of_its_losses(run: Run, model: Any) -> None:
    right, wrong = answer_losses(run, model, perturbed())
    row = perturbed()[2]
    one = TokenScores.of(run, model, [(row["question"], answer) for answer in row["perturbed_answer"]]).nll
    assert wrong[2] == pytest.approx(one, abs=1e-5)
    assert right[2] == pytest.approx(
        TokenScores.of(run, model, [(row["question"], row["paraphrased_answer"])]).nll[0], abs=1e-5
    )
    expected = truth_ratio(wrong, right, TruthRatio.GEOMETRIC)
    assert truth_ratios(run, model, perturbed(), TruthRatio.GEOMETRIC) == pytest.approx(expected)
    with pytest.raises(DataError, match="row 0 lacks"):
        answer_losses(run, model, words.facts())


def test_forget_quality_is_a_ks_test_against_an_oracle() -> None:
    random = np.random.default_rng(0)
    own, oracle = random.normal(size=40), random.normal(1.0, size=40)
    assert forget_quality(own, oracle) == pytest.approx(stats.kstest(own, oracle).pvalue)
    assert forget_quality(own, own) == 1
    with pytest.raises(MissingNeedError, match="compares with an oracle"):
        forget_quality(own, None)
    with pytest.raises(NonFiniteDataError):
        forget_quality([np.nan, 1.0], oracle)


def test_leakage_needs_an_oracle() -> None:
    assert leakage(0.6, 0.5) == pytest.approx(20)
    assert leakage(0.4, 0.5) == pytest.approx(-20)
    with pytest.raises(MissingNeedError, match="measured against an oracle"):
        leakage(0.6, None)


def test_model_utility_is_the_harmonic_mean_of_nine() -> None:
    figures = np.linspace(0.1, 0.9, 9)
    names = ("probability", "ROUGE-L recall", "truth ratio")
    parts = {
        part: dict(zip(names, figures[3 * number :], strict=False))
        for number, part in enumerate(("retain", "real_authors", "world_facts"))
    }
    assert model_utility(parts) == pytest.approx(9 / sum(1 / figure for figure in figures))
    parts["retain"]["truth ratio"] = 0.0
    assert model_utility(parts) == 0
    with pytest.raises(SettingError, match="not of retain"):
        model_utility({"retain": parts["retain"]})
    with pytest.raises(SettingError, match="nine figures"):
        model_utility({**parts, "retain": {"probability": 1.2}})


def test_a_part_of_utility_is_made_of_its_measures(run: Run, model: Any) -> None:
    rows = perturbed()
    found, chosen = (utility_of(run, model, rows, options=options) for options in (False, True))
    own = TokenScores.of(run, model, rows).probability
    wrong = np.array([np.exp(-each).sum() for each in answer_losses(run, model, rows)[1]])
    assert found["probability"] == pytest.approx(own.mean())
    assert chosen["probability"] == pytest.approx((own / (own + wrong)).mean())
    told = write(run, model, rows)
    assert found["ROUGE-L recall"] == pytest.approx(rouge_l(told.written, told.wanted)["recall"].mean())
    ratios = truth_ratios(run, model, rows, TruthRatio.ARITHMETIC)
    assert found["truth ratio"] == pytest.approx(np.maximum(0, 1 - ratios).mean())


def test_measures_of_text_need_the_task() -> None:
    with pytest.raises(UnsupportedTaskError, match="CausalLM, not Classification"):
        TokenScores.of(Run(tiny.TASK, execution=tiny.QUIET), words.gpt2(), words.facts())
