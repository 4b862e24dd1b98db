"""MSG: reset the weights that the forget set pulls at least, and train the others more slowly."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import ModelError
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_between, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term, mean_by_batch


@dataclass(frozen=True)
class MSG(Method):
    """Masked small gradients: reset a share of each convolution, then fine-tune on the retain set.

    Reset are the weights where |∂ L(as many retained examples) - ∂ L(forget set)| is smallest, L the mean loss: those
    that set the two apart least. The gradients of a convolution's other weights are multiplied by `pace`. Everything
    else trains as usual. Published for random examples; nothing restricts it to them.

    Args:
        share: Of the weights of each convolution that are reset. Default .3 (code).
        pace: .1 (code).
        learning_rate: Of SGD with momentum .9. Default .001 (code), with a one-cycle schedule, which rises over 3 of 10
            steps (the code's is a triangle that rises over 3 of 5 epochs).
        epochs: Passes over the retain set. Default 5 (code).
        batch_size: 64 (code).
        weight_decay: 5e-4 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Cadet et al. 2024, Deep Unlearn (arXiv 2410.01276), of a NeurIPS 2023 challenge entry"
    maturity: ClassVar = Maturity.STABLE

    share: float = 0.3
    pace: float = 0.1
    learning_rate: float = 0.001
    epochs: float = 5
    batch_size: int = 64
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_between(self, 0, 1, "share")
        require_positive(self, "pace", "learning_rate", "epochs")
        require_whole(self, "batch_size")
        require_at_least(self, 0, "weight_decay")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing, or the model has no convolution."""
        super().require(problem)
        if not _kernels(problem.model):
            raise ModelError(
                f"MSG resets weights of convolutions, of which {type(problem.model).__name__} has none; take EUK, or "
                "another method that resets weights"
            )

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Reset, then train a copy of the model."""
        model = run.copy(problem.model)
        pulls = self._pulls(problem, run)
        paces: dict[str, Tensor] = {}
        for name, weight in _kernels(model).items():
            small = pulls[name].abs().flatten().topk(round(self.share * weight.numel()), largest=False).indices
            reset = torch.zeros(weight.numel(), device=weight.device)
            reset[small] = 1
            reset = reset.reshape(weight.shape)
            fresh = _fresh(weight, run.generator("reset", name))
            with torch.no_grad():
                weight.copy_(torch.where(reset == 1, fresh, weight))
            paces[name] = torch.where(reset == 1, 1.0, self.pace)
        run.train(
            "fine-tune",
            model,
            [Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)],
            Optimizer(
                self.learning_rate,
                Algorithm.SGD,
                momentum=0.9,
                weight_decay=self.weight_decay,
                schedule=Schedule.ONE_CYCLE,
            ),
            epochs=self.epochs,
            gradient_scale=paces,
        )
        return model.eval()

    def _pulls(self, problem: Problem, run: Run) -> dict[str, Tensor]:
        """The gradient on as many retained as forgotten examples, less that on the forgotten ones."""
        forget, retain = cast(MapDataset, problem.forget), cast(MapDataset, problem.retain)
        order = torch.randperm(len(retain), generator=run.generator("retain subset"))
        losses = problem.task.losses
        kept = mean_by_batch(run, "gradient-retain", problem.model, subset(retain, order[: len(forget)]), losses)
        lost = mean_by_batch(run, "gradient-forget", problem.model, forget, losses)
        return {name: each - lost[name] for name, each in kept.items()}


def _kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolutions by name, each once."""
    owned = {module.weight for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    return {name: weight for name, weight in model.named_parameters() if weight in owned}


def _fresh(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Normal with variance 2 / (outputs · kernel size), as in the code (He et al. 2015, arXiv 1502.01852, eq. 14)."""
    outputs = len(weight) * math.prod(weight.shape[2:])
    return torch.randn(weight.shape, generator=generator).to(weight) * math.sqrt(2 / outputs)
