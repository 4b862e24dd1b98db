"""The gradient log holds what each example did, survives kills, and forgets what it is told to."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge import CausalLM, Classification, Execution, Optimizer, Supervised, load_state, save_state
from expunge.errors import (
    DataError,
    ForgetSetError,
    ModelError,
    OutputError,
    SettingError,
    StateError,
    UnknownRowError,
)
from expunge.networks import mlp
from expunge.states import GradientLog, GradientRecorder, log_training, token_weights
from expunge.states.gradient_store import RecordStore
from expunge.storage import read_tensors, tensors_bytes
from expunge.training import Run

TASK = CausalLM()
EXAMPLES = 12


def network(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    return GPT2LMHeadModel(GPT2Config(**{**shape, **dropout, "eos_token_id": 0, **changes})).train()


def text(number: int = EXAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 21, (number,), generator=generator).tolist()
    rows = [torch.randint(1, 61, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "prompt_length": place % 4} for place, row in enumerate(rows)]


Reference = dict[int, list[dict[str, Tensor]]]


def train(
    log: GradientLog,
    model: nn.Module,
    data: Sequence[Any],
    task: Any = TASK,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    epochs: int = 1,
    accumulate: int = 1,
    mean_over: str = "examples",
    clip: float | None = None,
    autocast: bool = False,
    stop_after: int | None = None,
) -> tuple[GradientLog, Reference]:
    """Train with a log; beside it compute each example's own gradient by a backward pass of its own."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 1e-2)
    reference: Reference = {}
    names, parameters = zip(*model.named_parameters(), strict=True)
    with GradientRecorder(log, model, optimizer) as recorder:
        number = 0
        for epoch in range(epochs):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
            for step in order.split(4 * accumulate):
                for ids in step.split(4):
                    number += 1
                    batch = task.collate([data[place] for place in ids.tolist()])
                    weights = torch.full((len(ids),), 1 / len(step)).double()
                    if mean_over == "tokens":
                        labels = task.collate([data[place] for place in step.tolist()])["labels"]
                        weights = token_weights(batch["labels"], (labels[:, 1:] != -100).sum())
                    torch.manual_seed(number)
                    with recorder.examples(ids, weights), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        (weights * task.losses(model, batch)).sum().backward()
                    for place, example in enumerate(ids.tolist()):
                        torch.manual_seed(number)
                        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                            own = task.losses(model, batch)[place]
                        found = torch.autograd.grad(own, parameters, allow_unused=True)
                        kept = {name: each for name, each in zip(names, found, strict=True) if each is not None}
                        reference.setdefault(example, []).append(kept)
                if clip is not None:
                    nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad()
                if stop_after == number:
                    return recorder.log, reference
    return recorder.log, reference


def whole(parts: Any, tied: dict[str, str] | None = None) -> dict[str, Tensor]:
    """Dense gradients by the name of the parameter, those of a tied one added up."""
    total: dict[str, Tensor] = {}
    for slot, part in parts:
        name = (tied or {"lm_head.weight": "transformer.wte.weight"}).get(slot.name, slot.name)
        total[name] = total[name] + part.dense() if name in total else part.dense()
    return total


def worst(log: GradientLog, reference: Reference) -> float:
    """Largest difference between what was logged and what a backward pass of each example gives, and none missing."""
    differences: list[float] = []
    for example, epochs in reference.items():
        for entry, wanted in zip(log.entries(example), epochs, strict=True):
            found = whole(log.gradient(entry).items())
            assert found.keys() == wanted.keys()
            differences += [float((found[name] - wanted[name]).abs().max()) for name in wanted]
    assert len(differences) > 90
    return max(differences)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("mean_over", ["examples", "tokens"])
def test_equals_a_backward_pass_of_each_example(folder: Path, accumulate: int, mean_over: str) -> None:
    model, data = network(), text()
    log = GradientLog.create(folder, model, TASK, data)
    log, reference = train(log, model, data, epochs=2, accumulate=accumulate, mean_over=mean_over)
    assert {slot.use for slot in log.slots} == {"transposed", "linear", "embedding", "bias", "norm"}
    assert worst(log, reference) < 1e-5


@pytest.mark.parametrize("checkpointed", [True, False], ids=["checkpointed", "plain"])
def test_gradient_checkpointing_changes_nothing(folder: Path, checkpointed: bool) -> None:
    model, data = network(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False), text()
    if checkpointed:
        model.activation_checkpointing_enable()
    log, reference = train(GradientLog.create(folder, model, TASK, data), model, data)
    assert worst(log, reference) < 1e-5


class _Odd(nn.Module):
    """Layers without a rule of their own, one used twice, and an embedding with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.norm = nn.RMSNorm(8)
        self.twice = nn.Linear(8, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.embed(inputs.long()))
        hidden = self.twice(torch.relu(self.twice(hidden)))
        return self.head(self.convolution(hidden.mT).mean(-1))


def test_layers_of_other_kinds_and_layers_used_twice(folder: Path) -> None:
    torch.manual_seed(0)
    model, task = _Odd(), Classification(3)
    data = [(torch.randint(0, 11, (5,)).float(), place % 3) for place in range(EXAMPLES)]
    log, reference = train(GradientLog.create(folder, model, task, data), model, data, task)
    assert "other" in {slot.use for slot in log.slots}
    assert worst(log, reference) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_are_logged_alone(folder: Path) -> None:
    """With LoRA the log is of the adapter: the base takes no gradient."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=4, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True, init_lora_weights=False
    )
    model, data = peft.get_peft_model(network(), settings), text()
    log = GradientLog.create(folder, model, TASK, data)
    assert log.slots
    assert all("lora_" in slot.name for slot in log.slots)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-2)
    reference: dict[int, dict[str, Tensor]] = {}
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with GradientRecorder(log, model, optimizer) as recorder:
        for step, ids in enumerate(torch.arange(EXAMPLES).split(4)):
            batch = TASK.collate([data[place] for place in ids.tolist()])
            torch.manual_seed(step)
            with recorder.examples(ids):
                TASK.losses(model, batch).mean().backward()
            for place, example in enumerate(ids.tolist()):
                torch.manual_seed(step)
                own = torch.autograd.grad(TASK.losses(model, batch)[place], list(named.values()))
                reference[example] = dict(zip(named, own, strict=True))
            optimizer.step()
            optimizer.zero_grad()
    for example, wanted in reference.items():
        found = whole(recorder.log.gradient(*recorder.log.entries(example)).items())
        assert found.keys() == wanted.keys()
        assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_low_precision_is_close(folder: Path) -> None:
    model, data = network(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), text()
    log, reference = train(GradientLog.create(folder, model, TASK, data, precision="bf16"), model, data)
    for example, (wanted,) in reference.items():
        found = whole(log.gradient(*log.entries(example)).items())
        for name in wanted:
            assert float((found[name] - wanted[name]).norm() / (wanted[name].norm() + 1e-8)) < 0.02
    full = train(GradientLog.create(folder.with_name("full"), network(), TASK, data), network(), data)[0]
    assert log.store.bytes < 0.6 * full.store.bytes


def test_training_under_autocast_is_logged(folder: Path) -> None:
    model, data = network(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), text()
    log, reference = train(GradientLog.create(folder, model, TASK, data), model, data, autocast=True)
    for example, (wanted,) in reference.items():
        found = whole(log.gradient(*log.entries(example)).items())
        assert all(float((found[n] - wanted[n]).norm() / (wanted[n].norm() + 1e-6)) < 0.05 for n in wanted)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-2, betas=(0.0, 0.99), eps=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2, betas=(0.0, 0.99), eps=1e-3, weight_decay=0),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, 1e-2, betas=(0.0, 0.99), eps=1e-3, amsgrad=True),
}


@pytest.mark.parametrize("clip", [None, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_of_all_examples_add_up_to_what_the_optimiser_did(folder: Path, name: str, clip: float | None) -> None:
    model, data = network(), text()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = OPTIMIZERS[name](model.parameters())
    log = GradientLog.create(folder, model, TASK, data)
    log, _ = train(log, model, data, optimizer=optimizer, epochs=2, accumulate=2, clip=clip)
    entries = [entry for example in range(EXAMPLES) for entry in log.entries(example)]
    undone = whole(log.updates(entries, log.slots))
    for parameter, each in model.named_parameters():
        # Without momentum the updates are the whole movement, so adding them leads back to the beginning.
        assert torch.allclose(each.detach() + undone[parameter], before[parameter], atol=2e-6, rtol=1e-4), parameter


class _PartlyUnused(nn.Module):
    """One of its smallest layers takes no part, the other has gradients of exactly 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(6, 8), nn.Linear(8, 2)
        self.unused, self.silent = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.top(self.body(inputs).relu()) + 0 * self.silent(inputs[:, :1])


@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zeros"])
def test_clipping_is_measured_where_some_parameters_have_no_gradient(folder: Path, set_to_none: bool) -> None:
    torch.manual_seed(0)
    model, task = _PartlyUnused(), Classification(2)
    data = [(100 * torch.randn(6), place % 2) for place in range(8)]
    for each in model.parameters():
        each.grad = None if set_to_none else torch.zeros_like(each)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    log = GradientLog.create(folder, model, task, data, layers=("body.*", "top.*", "silent.*"))
    with GradientRecorder(log, model, optimizer) as recorder:
        for ids in torch.arange(8).split(4):
            with recorder.examples(ids):
                task.losses(model, task.collate([data[place] for place in ids.tolist()])).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    entries = [entry for example in range(8) for entry in recorder.log.entries(example)]
    undone = whole(recorder.log.updates(entries, recorder.log.slots))
    for name in ("body.weight", "top.weight"):
        assert torch.allclose(model.get_parameter(name).detach() + undone[name], before[name], atol=1e-6), name


def test_gradients_from_elsewhere_are_refused_as_their_clipping_is_unknown(folder: Path) -> None:
    model, task = nn.Linear(3, 2), Classification(2)
    data = [(torch.ones(3), 0)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientRecorder(GradientLog.create(folder, model, task, data), model, optimizer):
        optimizer.step()  # no gradient at all: nothing to measure
        for each in model.parameters():
            each.grad = torch.ones_like(each)
        with pytest.raises(ModelError, match="are not the gradients of a backward pass"):
            optimizer.step()


def test_momentum_counts_as_what_it_adds_up_to(folder: Path) -> None:
    torch.manual_seed(0)
    model, task = nn.Linear(3, 2), Classification(2)
    data = [(torch.randn(3), place % 2) for place in range(4)]
    log = GradientLog.create(folder, model, task, data)
    log, _ = train(log, model, data, task, optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    found = whole(log.updates([log.entries(0)[0]], log.slots))
    raw = whole(log.gradient(log.entries(0)[0]).items())
    assert torch.allclose(found["weight"], raw["weight"] / 4 * 0.1 / (1 - 0.9))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (("embedding",), {"transformer.wte.weight", "transformer.wpe.weight"}),
        (("head",), {"lm_head.weight"}),
        (("block:1",), "h.1."),
        (("block:0-1",), "h."),
        (("*.ln_f.bias", "head"), {"transformer.ln_f.bias", "lm_head.weight"}),
    ],
)
def test_layers_are_chosen_and_a_tied_head_is_apart(folder: Path, layers: tuple[str, ...], names: Any) -> None:
    model, data = network(), text()
    log = GradientLog.create(folder, model, TASK, data, layers=layers)
    log, _ = train(log, model, data)
    found = {slot.name for slot, _ in log.read(*log.entries(0)).parts.items()}
    if isinstance(names, str):
        assert found == {name for name, _ in model.named_parameters() if name.startswith(f"transformer.{names}")}
    else:
        assert found == names
    list(log.updates(log.entries(0), log.slots))


def test_first_epoch_only(folder: Path) -> None:
    model, data = network(), text()
    log = GradientLog.create(folder, model, TASK, data, epochs="first")
    log, reference = train(log, model, data, epochs=3)
    assert len(log.store.records) == 3 + 2 * EXAMPLES  # a record of rates a step, two records an example
    first = {example: epochs[:1] for example, epochs in reference.items()}
    differences = [
        float((whole(log.gradient(entry).items())[name] - wanted[name]).abs().max())
        for example, (wanted,) in first.items()
        for entry in log.entries(example, "first")
        for name in wanted
    ]
    assert max(differences) < 1e-5
    with pytest.raises(StateError, match="holds the first epoch only, and 'all' was asked for"):
        log.entries(0, "all")


def test_reading_by_id_touches_only_its_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), text()
    log, _ = train(GradientLog.create(folder, model, TASK, data), model, data)
    entry = log.entries(5)[0]
    log.read(log.entries(6)[0])
    chunk = folder / "chunk-000000.bin"
    content = bytearray(chunk.read_bytes())
    spoiled = bytearray(b"\xff" * len(content))
    spoiled[entry.offset : entry.offset + entry.length] = content[entry.offset : entry.offset + entry.length]
    chunk.write_bytes(spoiled)
    again = GradientLog.open(folder)
    assert whole(again.gradient(entry).items()).keys()
    with pytest.raises(StateError, match=r"an entry in .* is damaged"):
        again.read(again.entries(6)[0])


def test_files_are_for_the_owner_only(folder: Path) -> None:
    model, data = network(), text()
    log, _ = train(GradientLog.create(folder, model, TASK, data), model, data)
    log.delete([3])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("updates", [True, False])
def test_deletion_removes_entries_and_gives_the_room_back(folder: Path, updates: bool) -> None:
    model, data = network(), text()
    log, reference = train(GradientLog.create(folder, model, TASK, data, updates=updates), model, data, epochs=2)
    size = sum(path.stat().st_size for path in folder.glob("chunk-*"))
    gone = log.read(log.entries(5)[0])
    secret = (
        next(part for slot, part in gone.parts.items() if slot.name.endswith("ln_f.bias")).dense().numpy().tobytes()
    )
    assert any(secret in path.read_bytes() for path in folder.glob("chunk-*"))
    left = log.delete([5, 6])
    assert not any(secret in path.read_bytes() for path in folder.glob("chunk-*"))
    assert sum(path.stat().st_size for path in folder.glob("chunk-*")) == left.store.bytes < size
    for opened in (left, GradientLog.open(folder)):
        assert worst(opened, {example: each for example, each in reference.items() if example not in (5, 6)}) < 1e-5
        assert opened.ids_left() == [example for example in range(EXAMPLES) if example not in (5, 6)]
        with pytest.raises(StateError, match="has no entry of example 5"):
            opened.entries(5)
        with pytest.raises(
            UnknownRowError, match=r"1 of the 2 examples are not among the 10 .* leave out what was deleted"
        ):
            opened.ids(TASK, [data[4], data[5]])
        assert opened.ids(TASK, [data[7], data[0]]) == [7, 0]


@pytest.mark.parametrize("by_handle", [True, False])
def test_whoever_has_the_folder_cannot_confirm_a_deleted_example(folder: Path, by_handle: bool) -> None:
    model, data = network(), text()
    log, _ = train(GradientLog.create(folder, model, TASK, data), model, data)
    stranger = text(1, seed=9)[0]

    def findings(guess: dict[str, Any]) -> tuple[int, str]:
        """In how many files a guess's digest under the log's own key lies, and what the log says of it."""
        opened = GradientLog.open(folder)
        digest = opened.examples.digest(TASK, [guess]).numpy().tobytes()
        files = sum(digest in path.read_bytes() for path in folder.iterdir())
        try:
            return files, str(opened.ids(TASK, [guess]))
        except ForgetSetError as error:
            return files, f"{type(error).__name__}: {error}"

    assert findings(data[5]) == (1, "[5]"), "the attack works on an example that is in the log"
    if by_handle:
        log.without([5]).compact()
    else:
        log.delete([5])
    assert findings(data[5]) == findings(stranger)
    assert findings(data[5])[0] == 0
    assert findings(data[4]) == (1, "[4]")


def test_a_log_that_remembers_deleted_examples_loses_them_at_the_next_deletion(folder: Path) -> None:
    data = text()
    log = GradientLog.create(folder, network(), TASK, data)
    ledger = folder / "examples.safetensors"
    ledger.write_bytes(tensors_bytes(log.examples.tensors() | {"removed": log.examples.digests[:1]}))
    GradientLog.open(folder).delete([3])
    assert read_tensors(ledger)[0].keys() == {"key", "digests"}


def test_a_deletion_by_handle_is_not_in_place_until_compacted(folder: Path) -> None:
    model, data = network(), text()
    log, _ = train(GradientLog.create(folder, model, TASK, data), model, data)
    digest = log.digest()
    after = log.without([2]).bound_to(network())
    assert log.digest() == digest != after.digest()
    assert log.entries(2)
    with pytest.raises(StateError, match="no entry of example 2"):
        after.entries(2)
    with pytest.raises(UnknownRowError):
        after.ids(TASK, [data[2]])
    save_state(after, folder.with_name("saved"))
    loaded = load_state(folder.with_name("saved"))
    assert isinstance(loaded, GradientLog)
    assert loaded.digest() == after.digest()
    compacted = loaded.compact()
    compacted.require_model(network())
    assert not [each for each in compacted.store.records if each.example == 2]


def test_examples_are_found_by_what_they_say(folder: Path) -> None:
    data = [*text(), text()[3]]
    log = GradientLog.create(folder, network(), TASK, data)
    assert log.ids(TASK, [data[3], data[12], data[0]]) == [3, 12, 0]
    with pytest.raises(UnknownRowError, match="1 of the 1 examples are not among the 13"):
        log.ids(TASK, text(1, seed=9))
    with pytest.raises(UnknownRowError, match="1 of the 3 examples"):
        log.ids(TASK, [data[3], data[3], data[3]])


def test_another_order_of_data_and_another_model_are_refused(folder: Path) -> None:
    model, data = network(), text()
    log = GradientLog.create(folder, model, TASK, data)
    with pytest.raises(StateError, match="others or stand in another order"):
        log.numbered(TASK, data[::-1])
    assert log.numbered(TASK, data)[4]["example_id"] == 4
    torch.manual_seed(1)
    other = GPT2LMHeadModel(model.config)
    with pytest.raises(StateError, match="made for a model with other weights"):
        GradientRecorder(log, other, torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(StateError, match="is not finished"):
        log.require_model(model)
    log, _ = train(log, model, data)
    log.require_model(model)
    with pytest.raises(StateError, match="belongs to another model"):
        log.require_model(other)
    with pytest.raises(StateError, match="is finished; make another log"):
        GradientRecorder(log, model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(StateError, match="already holds a gradient log"):
        GradientLog.create(folder, model, TASK, data)


def test_bad_requests_are_named(folder: Path) -> None:
    model, data = network(), text()
    for settings, message in (
        ({"layers": ("blok:1",)}, r"nothing is called 'blok:1'; there are all, embedding, head, block:0-1, and globs"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": "block:7"}, "nothing is called 'block:7'"),
        ({"epochs": "second"}, "epochs must be one of 'first', 'all'"),
        ({"precision": "fp8"}, "precision must be one of 'fp32', 'bf16'"),
        ({"layer": "all"}, "there is no setting layer; a gradient log has the settings layers, epochs"),
    ):
        with pytest.raises(SettingError, match=message):
            GradientLog.create(folder, model, TASK, data, **settings)
    assert not folder.exists()
    with pytest.raises(StateError, match="holds no gradient log"):
        GradientLog.open(folder)
    log = GradientLog.create(folder, model, TASK, data)
    with pytest.raises(SettingError, match="pass the optimiser, or make it with updates=False"):
        GradientRecorder(log, model)
    with pytest.raises(SettingError, match="the updates of Adagrad are not known"):
        GradientRecorder(log, model, torch.optim.Adagrad(model.parameters()))
    with pytest.raises(ModelError, match="parameters to be logged are not the optimiser's"):
        GradientRecorder(log, model, torch.optim.SGD(model.transformer.h[0].parameters(), 0.1))
    recorder = GradientRecorder(log, model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(DataError, match=r"1 of the ids of a batch lie outside the training set of the log \(0 to 11\)"):
        recorder.begin([3, 12])
    with pytest.raises(DataError, match="2 ids and 1 weights"):
        recorder.begin([3, 4], [1.0])
    recorder.begin([3, 4])
    with pytest.raises(ModelError, match="had no part in the loss"):
        recorder.end()
    with pytest.raises(ModelError, match="gave 2 rows for 3 examples"), recorder.examples([1, 2, 3]):
        TASK.losses(model, TASK.collate(data[1:3]))
    with pytest.raises(SettingError, match="gradients are logged while a model is trained"):
        GradientLog.record(model, TASK, data)


def test_an_error_within_a_step_leaves_only_finished_steps(folder: Path) -> None:
    model, data = network(), text()
    log = GradientLog.create(folder, model, TASK, data, updates=False)
    recorder = GradientRecorder(log, model)
    with recorder.examples([0, 1]):
        TASK.losses(model, TASK.collate(data[:2])).mean().backward()

    def interrupted() -> None:
        with recorder.examples([2, 3]):
            TASK.losses(model, TASK.collate(data[2:4])).mean().backward()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    recorder.stop()
    assert GradientLog.open(folder).ids_left() == [0, 1]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["index.jsonl", "chunk-000000.bin"])
@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_torn_tail_is_dropped(folder: Path, cut: int, name: str) -> None:
    """Whatever number of bytes is missing at the end of either file, what is whole is read and the rest passed over."""
    store = RecordStore.create(folder)
    contents = [bytes([number]) * (5 + number) for number in range(6)]
    for number, content in enumerate(contents):
        store.append("gradient", number, 1, number, [content])
        store.commit()
    store.close()
    path = folder / name
    path.write_bytes(path.read_bytes()[:-cut])
    torn = RecordStore(folder)
    left = len(torn.records)
    assert left < 6
    assert torn.dropped
    assert [torn.read(record) for record in torn.records] == contents[:left]
    torn.append("gradient", 99, 1, 99, [b"new"])
    torn.commit()
    torn.close()
    again = RecordStore(folder)
    assert [again.read(record) for record in again.records] == [*contents[:left], b"new"]
    assert not again.dropped


def test_damage_in_the_middle_is_an_error(folder: Path) -> None:
    store = RecordStore.create(folder)
    for number in range(3):
        store.append("gradient", number, 1, number, [b"content"])
    store.commit()
    store.close()
    index = folder / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"gradient", 1', b'"gradient", 8'))
    with pytest.raises(StateError, match=r"line 2 of .* is damaged"):
        RecordStore(folder)


def test_a_killed_training_leaves_whole_steps_and_goes_on(folder: Path) -> None:
    """Killed at any moment, the log opens, every entry in it is whole, and training goes on from a checkpoint."""
    code = f"""
        import sys; sys.path[:0] = {sys.path!r}
        import torch; torch.set_num_threads(1)
        from states.test_gradient_log import *
        model, data = network(), text()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        log = GradientLog.create(Path({str(folder)!r}), model, TASK, data)
        with GradientRecorder(log, model, optimizer) as recorder:
            for step in range(10_000):
                ids = [(4 * step + place) % len(data) for place in range(4)]
                with recorder.examples(ids):
                    TASK.losses(model, TASK.collate([data[place] for place in ids])).mean().backward()
                optimizer.step(); optimizer.zero_grad()
                if step == 5: print("ready", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    log = GradientLog.open(folder)
    steps = sorted({record.step for record in log.store.records})
    assert len(steps) >= 6
    for example in log.ids_left():
        entries = log.entries(example)
        assert [entry.epoch for entry in entries] == list(range(1, len(entries) + 1))
        for entry in entries:
            assert log.gradient(entry)
        list(log.updates(entries, log.slots))
    model, data = network(), text()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with GradientRecorder(log, model, optimizer, step=3) as recorder:
        assert {record.step for record in recorder.log.store.records} == {0, 1, 2}
        with recorder.examples([0, 1, 2, 3]):
            TASK.losses(model, TASK.collate(data[:4])).mean().backward()
        optimizer.step()
    assert [entry.epoch for entry in recorder.log.entries(0)] == [1, 2]


def test_a_recipe_trains_with_a_log_to_the_same_bits(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(6, generator=generator), place % 2) for place in range(20)]
    quiet = Execution(device="cpu", progress=False, micro_batch_size=3)
    recipe = Supervised(
        lambda: mlp(6, 2), Classification(2), epochs=2, batch_size=8, optimizer=Optimizer(0.01), execution=quiet
    )
    model, log = log_training(recipe, data, Run(recipe.task, 4, quiet), folder)
    plain = recipe(data, seed=4)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    log.require_model(model)
    assert log.ids_left() == list(range(20))
    assert [entry.epoch for entry in log.entries(7)] == [1, 2]
    changed = dataclasses.replace(recipe, execution=dataclasses.replace(quiet, precision="fp16"))
    with pytest.raises(SettingError, match="use one process, and bf16 or full precision"):
        changed.fit(data, _fp16(changed), lambda *_: None)


def _fp16(recipe: Supervised) -> Run:
    run = Run(recipe.task, 0, Execution(device="cpu", progress=False))
    run.execution = recipe.execution
    return run


def test_a_full_disk_is_an_error_that_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore.create(folder)
    store.append("gradient", 0, 1, 0, [b"whole"])
    store.commit()

    store_file = store._file
    assert store_file is not None

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_file", type("Full", (), {"write": full})())
    store_file.close()
    with pytest.raises(OutputError, match="the disk is full"):
        store.append("gradient", 1, 1, 1, [b"more"])
    monkeypatch.undo()
    assert [each.example for each in RecordStore(folder).records] == [0]


def test_the_index_names_nothing_but_places(folder: Path) -> None:
    model, data = network(), text()
    train(GradientLog.create(folder, model, TASK, data), model, data)
    lines = (folder / "index.jsonl").read_text().splitlines()
    assert all(len(json.loads(line.split("\t")[0])) == 8 for line in lines)
    assert "input_ids" not in (folder / "log.json").read_text()


def test_what_a_killed_deletion_left_goes_with_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model, data = network(), text()
    log, _ = train(GradientLog.create(folder, model, TASK, data), model, data)
    gone = [each for each in range(EXAMPLES) if each != 3]  # few are left, so that what was half done is longer
    others = [bytes(log.store.read(each)) for each in log.store.records if each.example in gone]
    with monkeypatch.context() as patch:
        patch.setattr("expunge.states.gradient_store.write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            GradientLog.open(folder).delete([1])
    assert len(list(folder.glob("chunk-*.bin"))) == 2
    after = GradientLog.open(folder).delete(gone)
    assert not [path for path in folder.iterdir() for each in others if each in path.read_bytes()]
    assert after.ids_left() == [3]
