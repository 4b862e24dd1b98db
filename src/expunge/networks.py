"""The small networks that demonstrations, benchmarks and tests train; the command line builds them by name."""

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

import torch
from torch import Tensor, nn

from expunge.errors import SettingError


def mlp(features: int, classes: int, hidden: Sequence[int] = (64, 64)) -> nn.Sequential:
    """A multilayer perceptron on feature vectors."""
    widths = [features, *hidden]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def small_cnn(channels: int, classes: int, width: int = 16) -> nn.Sequential:
    """Two convolution stages and a linear head, for images of 8 pixels a side and more."""
    return nn.Sequential(
        *_conv(channels, width),
        *_conv(width, width),
        nn.MaxPool2d(2),
        *_conv(width, 2 * width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def all_cnn(channels: int, classes: int, width: int = 96) -> nn.Sequential:
    """All-CNN-C of Springenberg et al. 2015 (arXiv 1412.6806), with BatchNorm; its head is a 1x1 convolution."""
    return nn.Sequential(
        *_conv(channels, width),
        *_conv(width, width),
        *_conv(width, width, stride=2),
        *_conv(width, 2 * width),
        *_conv(2 * width, 2 * width),
        *_conv(2 * width, 2 * width, stride=2),
        *_conv(2 * width, 2 * width),
        *_conv(2 * width, 2 * width, kernel=1),
        nn.Conv2d(2 * width, classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class ResNet9(nn.Module):
    """The nine-layer residual network of the DAWNBench CIFAR-10 entries (Page 2018)."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(channels, width), *_conv(width, 2 * width), nn.MaxPool2d(2))
        self.first = _Residual(*_conv(2 * width, 2 * width), *_conv(2 * width, 2 * width))
        self.middle = nn.Sequential(
            *_conv(2 * width, 4 * width), nn.MaxPool2d(2), *_conv(4 * width, 8 * width), nn.MaxPool2d(2)
        )
        self.second = _Residual(*_conv(8 * width, 8 * width), *_conv(8 * width, 8 * width))
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (batch, classes)."""
        return self.head(self.pool(self.second(self.middle(self.first(self.stem(images))))))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with a 3x3 stem, as usual for 32-pixel images."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            blocks += [_BasicBlock(before, after, stride=1 if stage == 0 else 2), _BasicBlock(after, after)]
        self.stem = nn.Sequential(*_conv(channels, width))
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (batch, classes)."""
        return self.head(self.pool(self.blocks(self.stem(images))))


class ClippedFeatures(nn.Module):
    """Features scaled down to a largest norm, with a constant 1 appended before, for heads with a guarantee.

    Put it before `nn.Linear(features + 1, classes, bias=False)`; the constant takes the place of the bias. It learns
    nothing.

    Args:
        norm: Largest norm of what comes out, the constant included.
        constant: Whether to append the constant.
    """

    def __init__(self, norm: float = 1.0, *, constant: bool = True) -> None:
        super().__init__()
        if not 0 < norm < math.inf:
            raise SettingError(f"norm must be above 0 and finite, not {norm!r}")
        self.norm = norm
        self.constant = constant

    def forward(self, inputs: Tensor) -> Tensor:
        """From (batch, ...) to (batch, features), with the constant one more."""
        rows = inputs.flatten(1)
        if self.constant:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows * (self.norm / length.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)


class GaussianNaiveBayes(nn.Module):
    """Classes as normal distributions with independent features; fitted by a formula, in float64.

    Args:
        features: Number of features.
        classes: Number of classes.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(classes, features, dtype=torch.double))
        self.variances = nn.Parameter(torch.ones(classes, features, dtype=torch.double))
        self.log_priors = nn.Parameter(torch.full((classes,), -math.log(classes), dtype=torch.double))

    def forward(self, inputs: Tensor) -> Tensor:
        """Joint log-likelihoods, which are logits up to a constant: (batch, classes)."""
        off = inputs.flatten(1)[:, None] - self.means
        density = off.square() / self.variances + (2 * math.pi * self.variances).log()
        return self.log_priors - 0.5 * density.sum(2)


class Aggregation(StrEnum):
    """How the members of an ensemble are made into one answer.

    Attributes:
        MEAN: The logarithm of the mean of the members' class probabilities.
        VOTE: The logarithm of the share of members that favour a class, with one vote spread over all classes added so
            that no share is zero.
        OUTPUTS: The mean of the members' outputs, as for regression.
    """

    MEAN = "mean"
    VOTE = "vote"
    OUTPUTS = "outputs"


class ShardedEnsemble(nn.Module):
    """Models trained on disjoint shards of the data, asked together.

    Args:
        members: One model a shard.
        active: Which members were trained on anything; the others have no say. By default all.
        aggregation: How the members' outputs, (batch, classes), are made into one.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        active: Sequence[bool] | None = None,
        aggregation: Aggregation = Aggregation.MEAN,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.active: Tensor
        self.register_buffer("active", torch.tensor([True] * len(members) if active is None else list(active)))
        self.aggregation = aggregation

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, or mean outputs: (batch, classes)."""
        used = [member for member, active in zip(self.members, self.active.tolist(), strict=True) if active]
        outputs = torch.stack([member(inputs) for member in used])
        match self.aggregation:
            case Aggregation.MEAN:
                return outputs.log_softmax(2).logsumexp(0) - math.log(len(used))
            case Aggregation.VOTE:
                votes = nn.functional.one_hot(outputs.argmax(2), outputs.shape[2]).sum(0).to(outputs.dtype)
                return ((votes + 1 / outputs.shape[2]) / (len(used) + 1)).log()
            case Aggregation.OUTPUTS:
                return outputs.mean(0)


class _Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.layers(images)


class _BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv(before, after, stride=stride),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(self.layers(images) + self.shortcut(images))


def _conv(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
