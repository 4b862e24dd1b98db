"""Filling a gradient log while the Trainer of transformers trains; apart, so that only its user loads that."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from expunge.errors import DataError, SettingError
from expunge.states.gradient_log import GradientLog
from expunge.states.gradient_recorder import GradientRecorder, token_weights
from expunge.states.gradient_rows import EXAMPLE_ID


class GradientLogCallback(TrainerCallback):
    """Logs the gradients of single examples in a Trainer's run, of a causal language model.

    The Trainer must be given `log.numbered(...)` as `train_dataset`, and `remove_unused_columns=False`, so that the
    ids reach the model, before which they are taken away again. Afterwards `log` is the finished log.

    Args:
        log: Made for the Trainer's model and training set.
    """

    def __init__(self, log: GradientLog) -> None:
        self.log = log
        self.recorder: GradientRecorder | None = None
        self.handle: RemovableHandle | None = None
        self.accumulates = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the run can be logged, and listen to model and optimiser.

        Raises:
            SettingError: A setting of the Trainer makes gradients of single examples impossible or wrong.
        """
        _require_loggable(args)
        optimizer = kwargs["optimizer"]
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        model: nn.Module = kwargs["model"]
        self.accumulates = args.gradient_accumulation_steps > 1
        self.recorder = GradientRecorder(self.log, model, inner, state.global_step)
        self.recorder.start()
        self.handle = model.register_forward_pre_hook(self._forward, with_kwargs=True)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A batch of a step is through."""
        if self.recorder is not None:
            self.recorder.end()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bind the log to the model."""
        if self.recorder is not None and self.handle is not None:
            self.handle.remove()
            self.recorder.stop()
            self.log = self.log.sealed(kwargs["model"])
            self.recorder = self.handle = None

    def _forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = kwargs.pop(EXAMPLE_ID, None)
        if module.training and torch.is_grad_enabled() and self.recorder is not None:
            if ids is None:
                raise DataError(
                    f"the batch carries no `{EXAMPLE_ID}`: pass `log.numbered(...)` as train_dataset, and use a "
                    "collator that keeps fields it does not know"
                )
            self.recorder.begin(ids, self._weights(kwargs))
        return args, kwargs

    def _weights(self, batch: Mapping[str, Any]) -> Tensor:
        tokens = batch.get("num_items_in_batch")
        if tokens is None and self.accumulates:
            raise SettingError(
                "the model is not told the number of tokens of a step, so under accumulation the weight of an "
                "example is not known; set gradient_accumulation_steps=1"
            )
        return token_weights(batch["labels"], tokens)


def _require_loggable(args: TrainingArguments) -> None:
    faults = {
        "remove_unused_columns=True, which drops the ids of the examples": args.remove_unused_columns,
        "fp16=True, whose loss is scaled": args.fp16,
        "label_smoothing_factor, whose loss is no mean over the examples' tokens": args.label_smoothing_factor > 0,
        "several processes or devices": args.world_size > 1 or args.n_gpu > 1,
        "torch_compile=True, which passes hooks by": args.torch_compile,
    }
    found = [fault for fault, there in faults.items() if there]
    if found:
        raise SettingError(
            f"a run cannot be logged with {' and with '.join(found)}; change that, or train without a log"
        )
