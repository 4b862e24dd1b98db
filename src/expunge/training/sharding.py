"""Training with parameters, gradients and optimiser state parted among processes, by FSDP2 as accelerate sets it up."""

import copy
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from expunge.training.objective import Optimizer


class Shards:
    """A copy of a model that is trained in parts, beside the whole, which every process holds and which stays plain.

    Parting a model cannot be undone, and methods, checkpoints and measurements need it whole. So the whole waits in the
    CPU's memory while the copy is trained, and takes over the weights where they are wanted.

    Attributes:
        trained: The copy, its parameters parted; it is called as the model is.
        stepper: What accelerate makes of its optimiser.
        optimizer: The copy's own optimiser.

    Args:
        accelerator: Under FSDP2.
        model: The whole.
        whole_optimizer: Over the parameters of the whole; its state, as read from a checkpoint, goes to the copy.
        settings: What both optimisers are built from.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, whole_optimizer: torch.optim.Optimizer, settings: Optimizer
    ) -> None:
        self.accelerator, self.model, self.whole_optimizer = accelerator, model, whole_optimizer
        copied = copy.deepcopy(model)
        model.to("cpu")
        self.optimizer = settings.build(parameter for parameter in copied.parameters() if parameter.requires_grad)
        trained, stepper = cast("tuple[Any, Any]", accelerator.prepare(copied, self.optimizer))
        self.trained = cast(nn.Module, trained)
        self.stepper: Any = stepper
        self._part_state()

    def gather_model(self) -> None:
        """Bring the whole to the weights of the copy; every process must call it."""
        whole = self.model.state_dict()
        for name, value in self.trained.state_dict().items():
            whole[name].copy_(_whole(value))

    def gather_optimizer(self) -> None:
        """In the main process, bring the whole's optimiser to the state of the copy's; every process must call it."""
        state = tree_map(_whole, self.optimizer.state_dict()["state"])
        if self.accelerator.is_main_process:
            groups = self.optimizer.state_dict()["param_groups"]
            self.whole_optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _part_state(self) -> None:
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for number, entries in self.whole_optimizer.state_dict()["state"].items():
            like = cast(DTensor, parameters[number])
            self.optimizer.state[like] = {name: _parted(value, like) for name, value in entries.items()}


def _whole(value: Any) -> Any:
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def _parted(value: Any, like: DTensor) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape != like.shape:
        return value
    # Every process has read the same checkpoint, so each takes its part and nothing is sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
