"""How computations run: device, precision, memory, processes."""

import os
from dataclasses import dataclass
from typing import Any, Literal, cast

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from expunge.errors import SettingError
from expunge.settings import require_at_least, require_one_of, require_whole


@dataclass(frozen=True)
class Execution:
    """How computations run; none of it changes what is computed beyond rounding.

    Args:
        device: `cpu` to stay off an accelerator; by default the one that is there.
        precision: `fp16` or `bf16` for mixed precision; parameters stay in float32.
        channels_last: Keep images and convolution weights in channels-last memory.
        micro_batch_size: Most examples in one forward pass; larger batches are accumulated. In training mode
            BatchNorm then sees the smaller batches.
        workers: Background processes that fetch examples; of use where reading an example is slow.
        gradient_checkpointing: Compute the blocks of a Hugging Face model a second time in the backward pass instead of
            keeping what they computed: less memory for one more forward pass a step, and the same numbers.
        threads: CPU threads of torch while a run lasts; the process's own number is restored afterwards. By default
            that number stays. One thread is often fastest for tiny models, and where a machine is busy: threads that
            wait for one another spin. Another number gives other bits, for sums are then added up in another order.
        checkpoint_seconds: Time between checkpoints within a phase.
        progress: Show progress bars on a terminal.
    """

    device: Literal["cpu"] | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = False
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    workers: int = 0
    threads: int | None = None
    checkpoint_seconds: float = 30.0
    progress: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_one_of(self, "device", (None, "cpu"))
        require_one_of(self, "precision", ("no", "fp16", "bf16"))
        require_whole(self, "micro_batch_size", "threads")
        require_one_of(self, "gradient_checkpointing", (False, True))
        require_whole(self, "workers", least=0)
        require_at_least(self, 0, "checkpoint_seconds")

    def accelerator(self) -> Accelerator:
        """An accelerator of these settings; under `accelerate launch` it spans the processes.

        Raises:
            SettingError: This process already computes in another precision or on another device, or accelerate was
                launched with a way to spread a model that cannot be used.
        """
        try:
            found = Accelerator(mixed_precision=self.precision, cpu=self.device == "cpu")
        except ValueError as error:
            if not AcceleratorState().initialized:
                raise
            raise SettingError(
                f"this process already runs accelerate with other settings ({error}); use the same precision and "
                "device throughout, or start a new process"
            ) from error
        _require_usable(found)
        return found


def _require_usable(accelerator: Accelerator) -> None:
    """Raise SettingError where accelerate would do something else than was asked for at its launch."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise SettingError(
            f"accelerate was launched with {kind.value}, under which gradients and weights are not at hand; launch it "
            "with FSDP version 2 (--use_fsdp --fsdp_version 2), or with neither"
        )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and accelerator.num_processes > 1 and kind is not DistributedType.FSDP:
        raise SettingError(
            f"accelerate was launched with FSDP and runs {kind.value}, for which it parts no model but would keep "
            "all of it in every process; launch without --use_fsdp, or on GPUs"
        )
    if kind is DistributedType.FSDP:
        _require_second_version(accelerator)


def _require_second_version(accelerator: Accelerator) -> None:
    plugin = cast(Any, accelerator.state).fsdp_plugin
    if not accelerator.is_fsdp2:
        raise SettingError("accelerate was launched with FSDP version 1; launch it with --fsdp_version 2")
    if plugin.activation_checkpointing:
        raise SettingError(
            "accelerate was launched with fsdp_activation_checkpointing; leave that off, and ask for it by "
            "Execution(gradient_checkpointing=True), or `gradient_checkpointing: true` under `execution` of a job"
        )
    plugin.cpu_ram_efficient_loading = False  # every process brings the whole model, and none is to be overwritten
