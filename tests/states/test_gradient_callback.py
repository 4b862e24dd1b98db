"""A Trainer's run is logged as a plain loop is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from expunge.errors import DataError, SettingError
from expunge.states import GradientLog
from expunge.states.gradient_callback import GradientLogCallback
from states.test_gradient_log import TASK, network, text

STEPS, BATCH, ACCUMULATE = 3, 2, 2


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = TASK.collate(examples)
    return {**batch, "example_id": torch.tensor([each["example_id"] for each in examples])}


def trainer(folder: Path, model: Any, data: Any, callback: Any, **changes: Any) -> Trainer:
    settings = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "report_to": [],
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "max_grad_norm": 0.1,
        "seed": 0,
    }
    arguments = TrainingArguments(**{**settings, **changes})
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[callback])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_updates_add_up_to_what_the_trainer_did(tmp_path: Path) -> None:
    """The Trainer's loss is a mean over the tokens of a step, of several batches, and its gradients are clipped."""
    model, data = network(), text()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    log = GradientLog.create(tmp_path / "log", model, TASK, data)
    callback = GradientLogCallback(log)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, betas=(0.0, 0.99), eps=1e-3)
    run = trainer(tmp_path, model, log.numbered(TASK, data), callback)
    run.optimizer = optimizer
    run.train()
    log = callback.log
    log.require_model(model)
    assert len(log.ids_left()) == STEPS * BATCH * ACCUMULATE == 12
    undone: dict[str, torch.Tensor] = {}
    entries = [entry for example in log.ids_left() for entry in log.entries(example)]
    for slot, part in log.updates(entries, log.slots):
        name = "transformer.wte.weight" if slot.name == "lm_head.weight" else slot.name
        undone[name] = undone.get(name, torch.zeros(())) + part.dense()
    for name, each in model.named_parameters():
        assert torch.allclose(each.detach() + undone[name], before[name], atol=2e-6, rtol=1e-4), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_own_gradients_are_those_of_each_examples_own_loss(tmp_path: Path) -> None:
    model, data = network(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), text()
    log = GradientLog.create(tmp_path / "log", model, TASK, data, updates=False)
    parameters = dict(model.named_parameters())
    wanted = {
        place: dict(
            zip(
                parameters,
                torch.autograd.grad(TASK.losses(model, TASK.collate([each]))[0], list(parameters.values())),
                strict=True,
            )
        )
        for place, each in enumerate(data)
    }
    callback = GradientLogCallback(log)
    trainer(tmp_path, model, log.numbered(TASK, data), callback, max_steps=1).train()
    assert len(callback.log.ids_left()) == BATCH * ACCUMULATE
    for example in callback.log.ids_left():
        found: dict[str, torch.Tensor] = {}
        for slot, part in callback.log.gradient(callback.log.entries(example)[0]).items():
            name = "transformer.wte.weight" if slot.name == "lm_head.weight" else slot.name
            found[name] = found.get(name, torch.zeros(())) + part.dense()
        for name, each in wanted[example].items():
            assert float((found[name] - each).abs().max()) < 1e-5, name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_cannot_be_logged_is_refused(tmp_path: Path) -> None:
    model, data = network(), text()
    log = GradientLog.create(tmp_path / "log", model, TASK, data)
    numbered = log.numbered(TASK, data)
    for changes, message in (
        ({"remove_unused_columns": True}, "remove_unused_columns=True, which drops the ids"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ):
        with pytest.raises(SettingError, match=f"cannot be logged with .*{message}"):
            trainer(tmp_path, model, numbered, GradientLogCallback(log), **changes).train()
    run = trainer(tmp_path, model, numbered, GradientLogCallback(log))
    run.data_collator = TASK.collate
    with pytest.raises(DataError, match="the batch carries no `example_id`"):
        run.train()
