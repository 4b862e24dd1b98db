"""A linear head on fixed features: its objective, gradient and curvature in float64, with the constants of its loss.

The objective over n rows x with labels y is F(W) = (1/n) Σ loss(W x, y) + (l2/2) ‖W‖², where a head with a bias sees
x with a 1 appended, so that the bias is a column of W and is penalised as well.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import ConvergenceError, ModelError
from expunge.networks import ClippedFeatures
from expunge.states.rows import RowLedger
from expunge.states.solving import conjugate_gradients
from expunge.tasks import Classification
from expunge.training.batches import in_order
from expunge.training.evaluation import EVALUATION_BATCH

_CHUNK = 2048


class HeadLoss(StrEnum):
    """What a head was trained on.

    `softmax`: cross-entropy over the classes. `one-vs-rest`: the sum over classes of a logistic loss each, so that the
    curvature falls into one block a class.
    """

    SOFTMAX = "softmax"
    ONE_VS_REST = "one-vs-rest"

    def lipschitz(self, norm: float, classes: int) -> float:
        """Largest gradient norm of a row of feature norm `norm`: ‖p - e_y‖ ≤ √2, or √classes one-vs-rest."""
        return norm * math.sqrt(2 if self is HeadLoss.SOFTMAX else classes)

    def smoothness(self, norm: float) -> float:
        """Largest curvature of a row: the variance of a unit vector under p is at most 1/2; 1/4 one-vs-rest."""
        return norm**2 * (0.5 if self is HeadLoss.SOFTMAX else 0.25)

    def hessian_lipschitz(self, norm: float) -> float:
        """Largest third derivative of a row: a third central moment is at most range³/(6√3), the range √2 or 1."""
        return norm**3 * (math.sqrt(6) / 9 if self is HeadLoss.SOFTMAX else 1 / (6 * math.sqrt(3)))

    def concordance(self, norm: float) -> float:
        """The κ of |D³F[a, a, v]| ≤ κ ‖v‖ D²F[a, a]: the largest range of logits under a unit change of weights."""
        return norm * (math.sqrt(2) if self is HeadLoss.SOFTMAX else 1.0)

    def slopes(self, norm: float) -> tuple[float, float]:
        """How fast a row's curvature along a unit direction changes with its logits, and with the direction's image."""
        if self is HeadLoss.SOFTMAX:
            return norm**2 * math.sqrt(6) / 9, norm
        return norm**2 / (6 * math.sqrt(3)), norm / 2

    def at_zero(self, classes: int) -> float:
        """Loss of a row at zero weights."""
        return math.log(classes) if self is HeadLoss.SOFTMAX else classes * math.log(2)

    def parameters_at_once(self, classes: int, features: int) -> int:
        """Rows and columns of one block of the curvature."""
        return classes * features if self is HeadLoss.SOFTMAX else features


@dataclass(frozen=True)
class HeadRows:
    """What a head sees of a dataset.

    Attributes:
        features: (rows, features) in the precision of the model, without the constant.
        labels: (rows,) int64.
        classes: Number of classes.
        bias: Whether a constant 1 is appended.
        loss: What the head was trained on.
    """

    features: Tensor
    labels: Tensor
    classes: int
    bias: bool
    loss: HeadLoss

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def width(self) -> int:
        """Columns of the weights, with the bias."""
        return self.features.shape[1] + self.bias

    def largest_norm(self) -> float:
        """Largest feature norm, with the constant; 0 where there are no rows."""
        return max((float(rows.norm(dim=1).max()) for rows, _ in self.chunks()), default=0.0)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows at a time: (chunk, width) float64, and their labels."""
        for rows, labels in zip(self.features.split(_CHUNK), self.labels.split(_CHUNK), strict=True):
            wide = rows.double()
            yield torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1) if self.bias else wide, labels

    def probabilities(self, weights: Tensor) -> Tensor:
        """Of each class for each row, at `weights` (classes, width): (rows, classes)."""
        found = [self._probabilities(rows @ weights.T) for rows, _ in self.chunks()]
        return torch.cat(found) if found else weights.new_empty(0, self.classes)

    def loss_sum(self, weights: Tensor) -> float:
        """Sum of the losses over the rows, without the penalty."""
        total = 0.0
        for rows, labels in self.chunks():
            logits = rows @ weights.T
            if self.loss is HeadLoss.SOFTMAX:
                total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            else:
                wanted = self._wanted(labels)
                total += float(nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"))
        return total

    def gradient_sum(self, weights: Tensor) -> Tensor:
        """Sum of the gradients over the rows, without the penalty: (classes, width)."""
        total = torch.zeros_like(weights)
        for rows, labels in self.chunks():
            total += (self._probabilities(rows @ weights.T) - self._wanted(labels)).T @ rows
        return total

    def product_sum(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """Sum over the rows of curvature times `direction` (classes, width), matrix-free.

        Args:
            probabilities: What `probabilities` gave at the weights in question.
            direction: (classes, width).
        """
        total = torch.zeros_like(direction)
        for (rows, _), chances in zip(self.chunks(), probabilities.split(_CHUNK), strict=True):
            change = rows @ direction.T
            if self.loss is HeadLoss.SOFTMAX:
                weighted = chances * (change - (chances * change).sum(1, keepdim=True))
            else:
                weighted = chances * (1 - chances) * change
            total += weighted.T @ rows
        return total

    def curvature_sum(self, weights: Tensor) -> Tensor:
        """Sum of the curvatures over the rows, without the penalty.

        Returns:
            Softmax: (classes * width, classes * width). One-vs-rest: (classes, width, width).
        """
        if self.loss is HeadLoss.ONE_VS_REST:
            blocks = weights.new_zeros(self.classes, self.width, self.width)
            for rows, _ in self.chunks():
                chances = self._probabilities(rows @ weights.T)
                for label, scale in enumerate((chances * (1 - chances)).T):
                    blocks[label].addmm_(rows.T, scale[:, None] * rows)
            return blocks
        whole = weights.new_zeros(self.classes, self.width, self.classes, self.width)
        for rows, _ in self.chunks():
            chances = self._probabilities(rows @ weights.T)
            for one in range(self.classes):
                for other in range(one, self.classes):
                    scale = chances[:, one] * (float(one == other) - chances[:, other])
                    whole[one, :, other] += rows.T @ (scale[:, None] * rows)
        for one in range(self.classes):
            for other in range(one):
                whole[one, :, other] = whole[other, :, one].T
        return whole.reshape(self.classes * self.width, -1)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.loss is HeadLoss.SOFTMAX else logits.sigmoid()

    def _wanted(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.classes).double()


Head = nn.Linear | nn.Conv2d
"""A 1x1 convolution before an average over positions is a linear layer on averaged features."""


def head_of(model: nn.Module, task: Classification) -> Head:
    """The linear head of a model.

    Raises:
        ModelError: The last layer is a convolution over more than single positions.
    """
    head = task.head_of(model)
    if isinstance(head, nn.Conv2d) and (head.weight[0, 0].numel() != 1 or head.groups != 1):
        raise ModelError(
            f"the last layer is a convolution of size {head.kernel_size}; a guarantee needs a linear layer"
        )
    return head


def head_weights(head: Head) -> Tensor:
    """Weights with the bias as last column: (classes, width) float64, on the CPU."""
    parts = [head.weight.detach().flatten(1)] + ([cast(Tensor, head.bias).detach()[:, None]] if _has_bias(head) else [])
    return torch.cat(parts, dim=1).double().cpu()


def set_head_weights(head: Head, weights: Tensor) -> None:
    """Write what `head_weights` gave, rounded to the precision of the model."""
    with torch.no_grad():
        if _has_bias(head):
            cast(Tensor, head.bias).copy_(weights[:, -1])
            weights = weights[:, :-1]
        head.weight.copy_(weights.reshape(head.weight.shape))


def is_head_alone(model: nn.Module, head: Head) -> bool:
    """Whether nothing but the head can hold something that was learned.

    That is known of layers without a memory of their own; any other module may keep something where nobody looks, in an
    attribute or in its code.
    """
    others = [module for module in model.modules() if module is not head]
    plain = type(head) in (nn.Linear, nn.Conv2d) and not _changed(head)
    return plain and all(
        type(module) in _WITHOUT_MEMORY and not list(module.parameters(recurse=False)) and not _changed(module)
        for module in others
    )


def head_rows(
    model: nn.Module, task: Classification, dataset: MapDataset, loss: HeadLoss, device: torch.device | None = None
) -> HeadRows:
    """What the head of `model` sees of a dataset, in evaluation mode; the model stays as it is.

    Raises:
        ModelError: The head is no nn.Linear, or something comes after it.
    """
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    head = head_of(frozen, task)
    where = device or head.weight.device
    frozen.to(where)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.no_grad():
        for batch in in_order(task, dataset, EVALUATION_BATCH):
            moved = send_to_device(batch, where)
            features.append(task.features(frozen, moved).cpu())
            labels.append(batch["labels"].cpu())
            if len(features) == 1:
                _require_last(frozen, task, head, moved, features[0])
    return HeadRows(torch.cat(features), torch.cat(labels), task.classes, _has_bias(head), loss)


def ledger_rows(task: Classification, dataset: MapDataset) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a dataset as the task reads them, for a `RowLedger`."""
    batches = list(in_order(task, dataset, EVALUATION_BATCH))
    return torch.cat([batch["inputs"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def ledger_digests(ledger: RowLedger, task: Classification, dataset: MapDataset) -> Tensor:
    """Digests of the rows of a dataset under a ledger's key, a batch at a time: (rows,) int64."""
    batches = in_order(task, dataset, EVALUATION_BATCH)
    return torch.cat([ledger.digests(batch["inputs"], batch["labels"]) for batch in batches])


def fit_head(rows: HeadRows, l2: float, start: Tensor | None = None, *, tolerance: float = 1e-10) -> Tensor:
    """Weights at which the gradient of the objective has a norm of at most `tolerance`: (classes, width).

    Newton's method with conjugate gradients and backtracking; the objective is strongly convex, so it has one optimum.

    Raises:
        ConvergenceError: The tolerance is not reached, which rounding may prevent.
    """
    weights = torch.zeros(rows.classes, rows.width, dtype=torch.double) if start is None else start.double().clone()
    count = len(rows)
    value = rows.loss_sum(weights) / count + l2 / 2 * float(weights.square().sum())
    norm = math.inf
    for _ in range(100):
        gradient = rows.gradient_sum(weights) / count + l2 * weights
        norm = float(gradient.norm())
        if norm <= tolerance:
            return weights
        chances = rows.probabilities(weights)
        solution = conjugate_gradients(
            lambda v, chances=chances: rows.product_sum(chances, v) / count + l2 * v, -gradient, tolerance=1e-6
        )
        slope = float((gradient * solution.step).sum())
        for scale in (0.5**halvings for halvings in range(40)):
            proposed = weights + scale * solution.step
            reached = rows.loss_sum(proposed) / count + l2 / 2 * float(proposed.square().sum())
            # near the optimum the decrease drowns in rounding, and the full step is the right one
            if reached <= value + 1e-4 * scale * slope or -slope < 1e-10 * max(1.0, abs(value)):
                weights, value = proposed, reached
                break
    raise ConvergenceError(
        f"the head reached a gradient norm of {norm:.2g}, not {tolerance:g}; raise the tolerance or the penalty {l2:g}"
    )


_WITHOUT_MEMORY = (nn.Sequential, nn.Flatten, nn.Identity, ClippedFeatures)


def _changed(module: nn.Module) -> bool:
    """Whether a module was made to compute, or to hold, something else than its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    return bool(hooks or "forward" in vars(module) or list(module.buffers(recurse=False)))


def _has_bias(head: Head) -> bool:
    return head.bias is not None  # pyright: ignore[reportUnnecessaryComparison]


def _require_last(
    model: nn.Module, task: Classification, head: Head, batch: dict[str, Tensor], features: Tensor
) -> None:
    said = task.outputs(model, batch).double().cpu()
    expected = nn.functional.linear(features.to(head.weight), head.weight.flatten(1), head.bias).double().cpu()
    if not torch.allclose(said, expected, rtol=1e-3, atol=1e-3):
        raise ModelError(
            "the outputs are not what the head gives on its features, so something comes after it; a guarantee needs "
            "the head to be the last layer, without a softmax of its own"
        )
