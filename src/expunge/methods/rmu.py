"""RMU: steering what a layer says of the forget set to a random direction."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.errors import SettingError
from expunge.methods._language import LanguageMethod, Rows, Student
from expunge.methods.base import Maturity, Need
from expunge.settings import require_positive, require_whole
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Term


@dataclass(frozen=True)
class RMU(LanguageMethod):
    """Move a layer's output on forget examples to one random vector, and hold it on retained ones.

    Minimise forget_weight · mean (h - steering · u)² + retain_weight · mean (h - h_original)², over the features of
    block `layer` and over labelled tokens, where u is a vector of length 1 with entries drawn uniformly from above 0.

    Args:
        forget_weight: 1 (OpenUnlearning, code).
        retain_weight: 1 (ibid.).
        steering: 2 (ibid.).
        layer: Number of the block, from 0. Default: a quarter of the way up (ours; the paper has 7 of 32).
        trained_layers: Train only so many blocks up to that one; by default all weights (OpenUnlearning).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET, Need.RETAIN})
    paper: ClassVar = "Li et al. 2024 (arXiv 2403.03218), section 4"
    maturity: ClassVar = Maturity.STABLE
    presets: ClassVar = MappingProxyType(
        # Zephyr-7B, from public copies of the authors' code, which is no longer public.
        {
            "wmdp": {
                "learning_rate": 5e-5,
                "steering": 6.5,
                "retain_weight": 1200.0,
                "layer": 7,
                "trained_layers": 3,
                "batch_size": 4,
            }
        }
    )

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    steering: float = 2.0
    layer: int | None = None
    trained_layers: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "forget_weight", "retain_weight", "steering")
        require_whole(self, "layer", least=0)
        require_whole(self, "trained_layers")

    def terms(self, student: Student) -> list[Term]:
        """Both terms; the original's activations on retained examples are computed here, once."""
        blocks = cast(Any, student.model).config.num_hidden_layers
        layer = blocks // 4 if self.layer is None else self.layer
        if layer >= blocks:
            raise SettingError(f"layer must be below the {blocks} blocks of the model, not {layer}")
        if self.trained_layers is not None:
            _freeze_all_but(student.model, range(layer - self.trained_layers + 1, layer + 1))
        _freeze_unreached(student, layer)
        retain = self.retained(student)
        held = _activations_of(student, retain, layer)
        drawn = torch.rand(held[0].shape[1], generator=student.run.generator("direction"))
        target = (self.steering * drawn / drawn.norm()).to(student.run.device)

        def steer(model: nn.Module, batch: TextBatch) -> Tensor:
            return _mean_square(student.task.activations(model, batch, layer) - target, batch)

        def hold(model: nn.Module, batch: TextBatch) -> Tensor:
            own = student.task.activations(model, batch, layer)
            wanted = torch.cat([held[number] for number in batch["numbers"].tolist()]).to(own)
            there = _labelled(batch)[..., None]
            return _mean_square(own - own.detach().masked_scatter(there, wanted), batch)

        return [
            Term(student.forget, steer, self.forget_weight, self.batch_size),
            Term(retain, hold, self.retain_weight, self.batch_size),
        ]


def _activations_of(student: Student, rows: Rows, layer: int) -> list[Tensor]:
    """Of each example what the block gives out at its labelled tokens: (tokens, features) each."""

    def measure(model: nn.Module, batch: TextBatch) -> list[Tensor]:
        there = _labelled(batch)
        return list(student.task.activations(model, batch, layer)[there].split(there.sum(1).tolist()))

    return [own for piece in student.over(rows, measure) for own in piece]


def _labelled(batch: TextBatch) -> Tensor:
    return batch["labels"] != -100


def _mean_square(difference: Tensor, batch: TextBatch) -> Tensor:
    """Mean over features and labelled tokens: (batch,)."""
    there = _labelled(batch)
    return (difference.square().mean(2) * there).sum(1) / there.sum(1)


def _freeze_unreached(student: Student, layer: int) -> None:
    """Leave no gradient to parameters above the layer: several processes would wait for one that never comes."""
    trained = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    batch = student.run.to_device(student.task.collate(student.forget[:1]))
    reached = student.task.activations(student.model, batch, layer).sum()
    # A gradient is None where nothing depends on the parameter, which the declared type leaves out.
    gradients = cast("tuple[Tensor | None, ...]", torch.autograd.grad(reached, trained, allow_unused=True))
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _freeze_all_but(model: nn.Module, blocks: range) -> None:
    """Leave a gradient to the parameters of some blocks alone."""
    stack = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    kept = {id(parameter) for number in blocks if number >= 0 for parameter in stack[number].parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in kept)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("trained_layers leaves nothing to train: the adapter has no layer in those blocks")
