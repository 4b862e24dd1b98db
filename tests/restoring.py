"""Tiny image-to-image models and made-up pictures, for the tests of images."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import tiny
from expunge.image_models import (
    InpaintingDiffusion,
    MaskedAutoencoder,
    MaskedTokenModel,
    MaskedTokens,
    fill_codebook,
    masked_autoencoder,
    tokenizer_losses,
)
from expunge.problem import Problem, split
from expunge.tasks import ImageToImage
from expunge.training import Algorithm, Optimizer, Schedule, Supervised

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


def masked_tokens(**changes: Any) -> MaskedTokenModel:
    """An untrained token model with 16 tokens an image, over a VQ model that has seen none of the pictures."""
    shape: dict[str, Any] = {"width": 24, "encoder_layers": 2, "decoder_layers": 1, "heads": 2}
    return MaskedTokenModel(copy.deepcopy(_tokenizer()), 4, **{**shape, **changes})


@cache
def _tokenizer() -> VQModel:
    """A VQ model trained on blocks at random."""

    def blocks() -> Tensor:
        return torch.rand(24, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)

    with torch.random.fork_rng():
        torch.manual_seed(5)
        tokenizer = VQModel(
            in_channels=1, out_channels=1, block_out_channels=(4, 8), latent_channels=4, num_vq_embeddings=24,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
            mid_block_add_attention=False,
        )  # fmt: skip
        fill_codebook(tokenizer, blocks())
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
        for _ in range(120):
            tokenizer_losses(tokenizer, blocks()).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return tokenizer


def unet(**changes: Any) -> UNet2DModel:
    """An untrained diffusion network of some 20,000 parameters."""
    shape: dict[str, Any] = {"sample_size": SIDE, "in_channels": 2, "out_channels": 1, "block_out_channels": (8, 16)}
    shape |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    return UNet2DModel(**{**shape, "norm_num_groups": 4, "add_attention": False, **changes})


MAE = ImageToImage(MaskedAutoencoder(), Half(), decoder_steps=20)
TOKENS = ImageToImage(MaskedTokens(decoding_steps=3), Half(), decoder_steps=20)
DIFFUSION = ImageToImage(
    InpaintingDiffusion(noise_levels=100, last_variance=0.1, sampling_steps=4), Half(), decoder_steps=10
)


@dataclass(frozen=True)
class Kind:
    """A family of models, and how long one of it is trained."""

    task: ImageToImage
    build: Callable[[], nn.Module]
    epochs: float
    learning_rate: float = 3e-3
    schedule: Schedule = Schedule.CONSTANT


FAMILIES = {
    "masked autoencoder": Kind(MAE, vit_mae, 25),
    "masked tokens": Kind(TOKENS, masked_tokens, 60, 1e-2, Schedule.ONE_CYCLE),
    "diffusion": Kind(DIFFUSION, unet, 20),
}


def recipe(kind: Kind = FAMILIES["masked autoencoder"], *, epochs: float | None = None) -> Supervised:
    """How the tests train such a model."""
    optimizer = Optimizer(kind.learning_rate, Algorithm.ADAMW, schedule=kind.schedule)
    return Supervised(
        kind.build, kind.task, epochs=epochs or kind.epochs, batch_size=24, optimizer=optimizer, execution=tiny.QUIET
    )


def problem(model: nn.Module, data: TensorDataset | None = None, task: ImageToImage = MAE, **given: Any) -> Problem:
    """Forget one kind of picture."""
    parts = split(pictures() if data is None else data, classes=[0])
    return Problem(model, task, parts.forget, parts.retain, classes=(0,), **given)
