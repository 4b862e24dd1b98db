"""Text as a task: what is predicted, what is kept of it, and what is refused."""

import dataclasses
import math
from typing import Any

import datasets as hf
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny
import words
from expunge import (
    AuditSettings,
    CausalLM,
    FineTune,
    FleetSettings,
    GradientAscent,
    NegGradPlus,
    Relearning,
    Retrain,
    Run,
    Stage,
    Task,
    audit,
    unlearn,
)
from expunge.audit.identity import recipe_name
from expunge.audit.notes import duplicates
from expunge.data import MapDataset
from expunge.errors import ContextError, DataError, EmptyAnswerError, ModelError, SettingError, TokenizerError
from expunge.methods import Method
from expunge.problem import Problem, split
from expunge.training import over_batches
from expunge.training.batches import in_order


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return words.recipe(epochs=6)(words.facts(), seed=0)


def all_of(task: CausalLM, model: torch.nn.Module, data: MapDataset, measure: str, size: int = 5) -> Tensor:
    return torch.cat(over_batches(Run(task, execution=tiny.QUIET), model, data, getattr(task, measure), size))


def log_p(model: Any, row: dict[str, Tensor]) -> Tensor:
    """Log-probabilities at each labelled token, one example at a time: (tokens, vocabulary)."""
    with torch.no_grad():
        logits = model(input_ids=row["input_ids"][None]).logits[0]
    places = [place for place in range(1, len(row["labels"])) if row["labels"][place] != -100]
    return torch.stack([logits[place - 1].double().log_softmax(0) for place in places])


def own(model: Any, row: dict[str, Tensor]) -> Tensor:
    tokens = row["labels"][1:][row["labels"][1:] != -100]
    return log_p(model, row).gather(1, tokens[:, None])[:, 0]


def test_losses_signal_and_quality_are_those_of_one_example_at_a_time(model: torch.nn.Module) -> None:
    rows = words.TASK.tokenized(words.facts()).dataset
    mine = [own(model, row) for row in rows]
    losses, signal = (all_of(words.TASK, model, words.facts(), name) for name in ("losses", "signal"))
    assert torch.allclose(losses.double(), torch.stack([-each.mean() for each in mine]), atol=1e-5)
    odds = [each - torch.log1p(-each.exp()) for each in mine]
    assert torch.allclose(signal.double(), torch.stack([each.mean() for each in odds]), atol=1e-4)
    least = CausalLM(words.tokenizer(), least_likely=0.3)
    lowest = [each.sort().values[: math.ceil(0.3 * len(each))].mean() for each in odds]
    assert torch.allclose(all_of(least, model, words.facts(), "signal").double(), torch.stack(lowest), atol=1e-4)
    batch = next(in_order(words.TASK, words.facts(), 100))
    quality = words.TASK.quality(model, batch)
    assert list(quality) == ["exact memorisation", "probability"]
    hits = [(log_p(model, row).argmax(1) == row["labels"][row["labels"] != -100]).double().mean() for row in rows]
    assert torch.allclose(quality["exact memorisation"], torch.stack(hits))
    assert torch.allclose(quality["probability"], torch.stack([each.mean().exp() for each in mine]), atol=1e-6)


def test_the_prompt_carries_no_loss_and_the_end_does() -> None:
    row = words.TASK.tokenized([("where does ann live ?", "in rome .")]).dataset[0]
    read = words.tokenizer()
    assert read.decode(row["input_ids"]) == "Question : where does ann live ? Answer : in rome . [EOS]"
    assert read.decode(row["input_ids"][row["labels"] != -100]) == "in rome . [EOS]"


def test_every_form_of_an_example_gives_the_same_tokens() -> None:
    task = words.TASK
    row = task.tokenized([("where does ann live ?", "in rome .")]).dataset[0]
    prompt = int((row["labels"] == -100).sum())
    numbers = row["input_ids"].tolist()
    forms: list[Any] = [
        {"question": "where does ann live ?", "answer": "in rome .", "person": "ann"},
        {"input_ids": numbers, "labels": row["labels"].tolist()},
        {"input_ids": numbers, "prompt_length": prompt},
        {"input_ids": [*numbers, 0, 0], "prompt_length": prompt, "attention_mask": [1] * len(numbers) + [0, 0]},
        (row["input_ids"], row["labels"]),
    ]
    wanted = task.collate([row])
    for form in forms:
        batch = task.collate([form])
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    columns = TensorDataset(row["input_ids"].repeat(3, 1), row["labels"].repeat(3, 1))
    assert torch.equal(next(in_order(task, columns, 3))["labels"], row["labels"].repeat(3, 1))
    table = hf.Dataset.from_list(words.facts())
    assert torch.equal(next(in_order(task, table, 4))["input_ids"], next(in_order(task, words.facts(), 4))["input_ids"])
    for plain in ("ann live in rome .", {"text": "ann live in rome ."}):
        assert torch.equal(task.collate([plain])["labels"], task.collate([plain])["input_ids"])


def test_outputs_have_one_shape_and_their_divergence_bounds_that_of_the_vocabulary(model: torch.nn.Module) -> None:
    other = words.recipe(epochs=2)(words.facts(), seed=1)
    rows = words.TASK.tokenized(words.facts()).dataset
    exact = []
    for row in rows:
        log_first, log_second = log_p(model, row), log_p(other, row)
        log_mean = torch.logaddexp(log_first, log_second) - math.log(2)
        terms = log_first.exp() * (log_first - log_mean) + log_second.exp() * (log_second - log_mean)
        exact.append(0.5 * terms.sum(1).mean())
    bounds = []
    for buckets in (1, 5, len(words.WORDS)):
        task = CausalLM(words.tokenizer(), buckets=buckets, places=12)
        first, second = (all_of(task, each, words.facts(), "outputs") for each in (model, other))
        assert first.shape == (len(rows), 12, 1 + buckets)
        there = (first != -torch.inf).any(2)
        assert there.sum(1).tolist() == [len(own(model, row)) for row in rows]
        assert torch.allclose(first.exp().sum(2)[there], torch.ones(int(there.sum())), atol=1e-5)
        assert torch.allclose(first[0, : len(own(model, rows[0])), 0].double(), own(model, rows[0]), atol=1e-5)
        bounds.append(task.divergence(first, second))
        assert torch.equal(task.divergence(first, first), torch.zeros(len(rows), dtype=torch.double))
    assert bool((bounds[0] <= bounds[1] + 1e-6).all())
    assert torch.allclose(bounds[2], torch.stack(exact), atol=1e-6), "with a part for each token it is exact"
    few = CausalLM(words.tokenizer(), places=2)
    kept = all_of(few, model, words.facts(), "outputs")[:, :, 0].double()
    count = len(own(model, rows[0]))
    assert torch.allclose(kept[0], own(model, rows[0])[[0, count // 2]], atol=1e-5), "evenly spread over more"


def test_outputs_can_be_learned_from(model: torch.nn.Module) -> None:
    student = words.gpt2()
    said = words.TASK.outputs(student, next(in_order(words.TASK, words.facts(), 4)))
    said[said != -torch.inf].clamp(min=-50).sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in student.parameters())


def test_features_are_what_the_head_sees(model: Any) -> None:
    rows = words.TASK.tokenized(words.facts()).dataset
    features = all_of(words.TASK, model, words.facts(), "features")
    hidden = model.transformer(input_ids=rows[3]["input_ids"][None]).last_hidden_state[0]
    places = (rows[3]["labels"] != -100).nonzero()[:, 0] - 1
    assert torch.allclose(features[3], hidden[places].mean(0), atol=1e-5)


def test_a_refitted_head_is_the_optimum_and_nothing_else_changes(model: Any) -> None:
    student = Run(words.TASK, execution=tiny.QUIET).copy(model)
    batches = list(in_order(words.TASK, words.facts(), 7))
    words.TASK.refit_head(student, batches)
    before, after = model.state_dict(), student.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]
    assert student.lm_head.weight is not student.transformer.wte.weight
    seen = [words.TASK.seen(student, batch) for batch in batches]
    features = torch.cat([inside[said.mask] for inside, said in seen]).detach().double()
    targets = torch.cat([said.targets[said.mask] for _, said in seen])
    weight = student.lm_head.weight.detach().double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T, targets)
    (loss + 0.5e-3 * (weight - before["lm_head.weight"]).square().sum()).backward()
    assert float(weight.grad.norm()) < 1e-3, "the gradient of the stated objective vanishes"


def test_texts_of_different_lengths_mix_in_a_batch() -> None:
    short, long = [("what is ann ?", "a cook .")], [("where does bob live ?", "bob live in the town of rome .")]
    task = words.TASK
    from expunge.data import View
    from expunge.training.batches import fetch

    mixed = fetch(task, [View.of(short), View.of(long)], torch.tensor([0, 1]))
    wanted = task.collate([*short, *long])
    assert all(torch.equal(mixed[name], wanted[name]) for name in wanted)


def test_duplicates_are_found_whatever_stands_beside_them() -> None:
    facts = words.facts()
    assert duplicates(words.TASK, facts[:2], [*facts[5:], facts[1]]) == 1


def test_groups_come_from_a_field() -> None:
    task = CausalLM(words.tokenizer(), group="person")
    assert task.groups(task.collate(words.facts()[:4])) == ["ann", "ann", "bob", "bob"]
    assert task.groups(task.collate(task.tokenized(words.facts()).dataset[:3])) == ["ann", "ann", "bob"]
    assert words.TASK.groups(words.TASK.collate(words.facts()[:2])) == ["all", "all"]
    with pytest.raises(DataError, match="no field 'person'"):
        task.collate([("a ?", "b")])


METHODS: dict[str, Method] = {
    "GradientAscent": GradientAscent(1e-2, epochs=2, batch_size=4),
    "FineTune": FineTune((Stage(0.01, steps=4),), batch_size=8),
    "NegGradPlus": NegGradPlus(epochs=1, batch_size=8),
    "Retrain": Retrain(),
}


def test_a_field_called_number_is_the_users() -> None:
    rows = [
        {"question": "who ?", "answer": "ann", "number": "12b"},
        {"question": "who ?", "answer": "ann", "number": 3.7},
    ]
    assert set(words.TASK.collate(rows)) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_know_no_text_run_on_it(name: str, model: torch.nn.Module) -> None:
    problem = words.problem(model, recipe=words.recipe(epochs=3))
    first, second = (unlearn(problem, METHODS[name], seed=2, execution=tiny.QUIET) for _ in range(2))
    assert first.record.result_digest == second.record.result_digest != first.record.original_digest
    with torch.no_grad():
        quality = words.TASK.quality(first.model, next(in_order(words.TASK, problem.forget, 10)))
    assert all(bool(((value >= 0) & (value <= 1)).all()) for value in quality.values())


def test_an_audit_tells_the_original_from_oracles() -> None:
    recipe = words.recipe(epochs=12)
    problem = words.problem(recipe(words.facts(), seed=0), recipe=recipe)
    ascended = unlearn(problem, GradientAscent(1e-5, epochs=1, batch_size=8), execution=tiny.QUIET)
    settings = AuditSettings(relearning=Relearning(steps=(0, 2, 4)))
    evidence = audit(ascended, oracles=3, settings=settings, execution=tiny.QUIET, fleet=FleetSettings(cache=False))
    measures = {(measure.name, measure.on): measure for measure in evidence.measures}
    memorised = measures["probability", "forget"]
    assert memorised.unlearned.value > max(memorised.oracles) + 0.1, "a step that small leaves everything in place"
    far = measures["divergence from the oracles", "forget"]
    assert far.unlearned.value > max(far.oracles)
    assert {"exact memorisation", "relearning, head refitted, mean"} <= {name for name, _ in measures}
    assert evidence.answers is None


def test_oracles_of_text_are_found_again_only_under_the_same_tokenizer() -> None:
    recipe, other = words.recipe(), words.tokenizer()
    same = dataclasses.replace(recipe, task=CausalLM(words.tokenizer()))
    other.add_tokens(["new"])
    names = [recipe_name(each, "cpu") for each in (recipe, same, dataclasses.replace(recipe, task=CausalLM(other)))]
    assert names[0] == names[1] != names[2]


def without_pad() -> PreTrainedTokenizerFast:
    read = words.tokenizer()
    read.pad_token = None
    return read


def refusals() -> dict[str, tuple[type[Exception], str, Any]]:
    task, long = words.TASK, ("where is ann ?", " ".join(["rome"] * 40))
    return {
        "no pad token": (TokenizerError, "no pad token; set one", lambda: CausalLM(without_pad())),
        "no tokenizer": (TokenizerError, r"give the task a tokenizer", lambda: CausalLM().collate(["ann"])),
        "template": (SettingError, "template must hold", lambda: CausalLM(template="{question}")),
        "order": (SettingError, "before", lambda: CausalLM(template="{answer} {question}")),
        "share": (SettingError, "at most 1", lambda: CausalLM(least_likely=1.5)),
        "too long": (ContextError, r"2 of 3 examples have more than 32 tokens \(the longest 49\).*`too_long: drop`",
                     lambda: task.collate([long, words.facts()[0], long])),
        "empty": (EmptyAnswerError, "1 of 2 examples have an empty answer",
                  lambda: task.collate([("who ?", " "), ("who ?", "ann")])),
        "null answer": (EmptyAnswerError, "`answer` of an example is null",
                        lambda: task.collate([{"question": "who ?", "answer": None}])),
        "null text": (EmptyAnswerError, "`text` of an example is null", lambda: task.collate([{"text": None}])),
        "null question": (DataError, "`question` of an example is a NoneType, not text",
                          lambda: task.collate([{"question": None, "answer": "ann"}])),
        "answer no text": (DataError, "`answer` of an example is a float, not text",
                           lambda: task.collate([{"question": "who ?", "answer": 0.5}])),
        "form": (DataError, "the fields person", lambda: task.collate([{"person": "ann"}])),
        "no text": (DataError, "an example is a float", lambda: task.collate([0.5])),
        "labels": (DataError, "3 input_ids and 2 labels",
                   lambda: task.collate([{"input_ids": [3, 4, 5], "labels": [3, 4]}])),
        "prompt of -1": (DataError, "prompt_length of an example is -1; it is a number of tokens, 0 or more",
                         lambda: task.collate([{"input_ids": [5, 6, 7], "prompt_length": -1}])),
        "prompt of 1.5": (DataError, "prompt_length of an example is a float; give the number",
                          lambda: task.collate([{"input_ids": [5, 6, 7], "prompt_length": 1.5}])),
        "floats": (DataError, "row of whole numbers", lambda: task.collate([{"input_ids": [0.5, 1.5]}])),
        "vocabulary": (TokenizerError, "41 tokens and the model 20: they do not belong together",
                       lambda: task.losses(words.gpt2(vocab_size=20), task.collate(words.facts()[:1]))),
        "other vocabulary": (TokenizerError, "41 tokens and the model 5000",
                             lambda: task.losses(words.gpt2(vocab_size=5000), task.collate(words.facts()[:1]))),
        "token": (TokenizerError, "a token is 99, outside the model's vocabulary of 41",
                  lambda: CausalLM().losses(words.gpt2(), CausalLM().collate([[3, 99]]))),
        "context": (ContextError, r"1 of 2 examples in a batch have more tokens than the 8 .* \(the longest 12\)",
                    lambda: CausalLM().losses(words.gpt2(n_positions=8), CausalLM().collate([[3] * 12, [4] * 6]))),
        "no logits": (ModelError, "GPT2Model returns no logits",
                      lambda: task.losses(words.gpt2().transformer, task.collate(words.facts()[:1]))),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_what_cannot_be_used_is_refused(case: str) -> None:
    kind, message, make = refusals()[case]
    with pytest.raises(kind, match=message):
        make()


def special(**tokens: str) -> PreTrainedTokenizerFast:
    read = words.tokenizer()
    read.add_special_tokens(tokens)
    return read


@pytest.mark.parametrize(
    ("tokens", "model", "refused"),
    [
        ({}, {"vocab_size": 46}, None),  # a few in reserve
        ({}, {"vocab_size": 48}, None),  # padded to a multiple of 8
        ({}, {"vocab_size": 64}, None),
        ({}, {"vocab_size": 128}, None),
        ({}, {"vocab_size": 47}, "41 tokens and the model 47"),
        ({}, {"vocab_size": 56}, "41 tokens and the model 56"),
        ({}, {"vocab_size": 1024}, "41 tokens and the model 1024"),
        ({"eos_token": "known"}, {}, "eos_token_id is 19 to the tokenizer and 1 to the model"),
        ({"eos_token": "known"}, {"eos_token_id": [1, 19]}, None),
        ({"eos_token": "known"}, {"eos_token_id": None}, None),
        ({"eos_token": "known"}, {"eos_token_id": 50256}, None),  # the class's own, outside the vocabulary
        ({"bos_token": "known"}, {}, "bos_token_id is 19 to the tokenizer and 1 to the model"),
        ({"pad_token": "known"}, {}, "pad_token_id is 19 to the tokenizer and 0 to the model"),
        ({"pad_token": "[EOS]"}, {}, None),
        ({"pad_token": "[UNK]"}, {}, None),
    ],
)
def test_a_foreign_tokenizer_is_told_by_size_and_by_ends(
    tokens: dict[str, str], model: dict[str, Any], refused: str | None
) -> None:
    task = CausalLM(special(**tokens))
    batch = task.collate(words.facts()[:2])
    if refused is None:
        assert task.losses(words.gpt2(**model), batch).isfinite().all()
        return
    with pytest.raises(TokenizerError, match=refused):
        task.losses(words.gpt2(**model), batch)


def test_ends_that_a_class_brings_along_count_where_its_vocabulary_is_kept() -> None:
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    task = CausalLM(words.tokenizer())  # its [EOS] is 1, and a Llama's own 2
    batch = task.collate(words.facts()[:2])
    assert task.losses(LlamaForCausalLM(LlamaConfig(vocab_size=41, **shape)), batch).isfinite().all()
    large = words.tokenizer()
    large.add_tokens([f"word{number}" for number in range(LlamaConfig().vocab_size - len(large))])
    model = LlamaForCausalLM(LlamaConfig(**shape))
    with pytest.raises(TokenizerError, match="eos_token_id is 1 to the tokenizer and 2 to the model"):
        CausalLM(large).losses(model, CausalLM(large).collate(words.facts()[:2]))


def test_long_examples_are_dropped_only_when_asked_and_counted() -> None:
    long = {"question": "where is ann ?", "answer": " ".join(["rome"] * 40)}
    data = [words.facts()[0], long, words.facts()[1]]
    with pytest.raises(ContextError, match="1 of 3 examples"):
        words.TASK.tokenized(data)
    found = words.TASK.tokenized(data, too_long="drop")
    assert (found.dropped, found.kept.tolist(), len(found.dataset)) == (1, [0, 2], 2)
    with pytest.raises(ContextError, match="all 1 examples"):
        words.TASK.tokenized([long], too_long="drop")


def test_a_request_with_a_long_example_is_refused_before_anything_runs(model: torch.nn.Module) -> None:
    facts = [*words.facts(), {"person": "ann", "question": "where ?", "answer": " ".join(["rome"] * 40)}]
    parts = split(facts, column_is=("person", ["ann"]))
    problem = Problem(model, words.TASK, parts.forget, parts.retain)
    with pytest.raises(ContextError, match="1 of 3 examples"):
        unlearn(problem, GradientAscent(), execution=tiny.QUIET)


def test_it_is_a_task_like_the_others() -> None:
    assert isinstance(words.TASK, Task)
    assert words.TASK.labels_of(words.facts()) is None
    assert words.TASK.answers(torch.zeros(2, 3, 4)) == {}
