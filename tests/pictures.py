"""Tiny image-to-image models and made-up pictures, for the tests of images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import tiny
from expunge.image_models import MaskedAutoencoder, masked_autoencoder
from expunge.problem import Problem, split
from expunge.tasks import ImageToImage
from expunge.training import Algorithm, Optimizer, Supervised

SIDE, KINDS = 8, 3


def pictures(per_kind: int = 24, *, channels: int = 1, seed: int = 0) -> TensorDataset:
    """Stripes, a chessboard, and a ramp, each at random brightness, with their kind as label."""
    draw = torch.Generator().manual_seed(7 + seed)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    patterns = torch.stack([row // 2 % 2, (row // 4 + column // 2) % 2, column / (SIDE - 1)])
    labels = torch.arange(KINDS).repeat_interleave(per_kind)
    light = 0.5 + 0.5 * torch.rand(len(labels), 1, 1, 1, generator=draw)
    noise = 0.05 * torch.rand(len(labels), channels, SIDE, SIDE, generator=draw)
    return TensorDataset(0.9 * light * patterns[labels][:, None] + noise, labels)


@dataclass(frozen=True)
class Half:
    """Hides the right half."""

    def mask(self, shape: tuple[int, int, int, int], seed: int, positions: Tensor) -> Tensor:
        del seed, positions
        found = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
        found[..., shape[3] // 2 :] = True
        return found


def vit_mae(**changes: Any) -> ViTMAEForPreTraining:
    """An untrained masked autoencoder of some 20,000 parameters."""
    shape: dict[str, Any] = {"image_size": SIDE, "patch_size": 4, "num_channels": 1, "mask_ratio": 0.5}
    shape |= {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shape |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return masked_autoencoder(ViTMAEConfig(**{**shape, "decoder_intermediate_size": 32, **changes}))


MAE = ImageToImage(MaskedAutoencoder(), Half(), decoder_steps=20)


def recipe(build: Any = vit_mae, task: ImageToImage = MAE, *, epochs: float = 20) -> Supervised:
    """How the tests train such a model."""
    return Supervised(
        build, task, epochs=epochs, batch_size=24, optimizer=Optimizer(3e-3, Algorithm.ADAMW), execution=tiny.QUIET
    )


def problem(model: nn.Module, data: TensorDataset | None = None, task: ImageToImage = MAE, **given: Any) -> Problem:
    """Forget one kind of picture."""
    parts = split(pictures() if data is None else data, classes=[0])
    return Problem(model, task, parts.forget, parts.retain, classes=(0,), **given)
