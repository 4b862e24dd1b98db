"""Five worlds for image-to-image models: pictures, a model that restores them, and what it is to forget."""

# pyright: reportUnknownMemberType=false

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import ViTMAEConfig

import _cifar10
from _cifar10 import Size
from expunge import Classification, Execution, ImageToImage, Optimizer, Schedule, Supervised, split
from expunge.audit.feature_networks import FeatureNetwork, classifier_network
from expunge.corruptions import CentreCrop, Corruption, RandomMask, Uncrop
from expunge.image_models import (
    ImageModel,
    InpaintingDiffusion,
    MaskedAutoencoder,
    MaskedTokenModel,
    MaskedTokens,
    fill_codebook,
    masked_autoencoder,
    tokenizer_losses,
)
from expunge.networks import small_cnn
from expunge.tasks.image_to_image import ImageBatch

QUIET = Execution(device="cpu", progress=False)
ON_20: dict[str, Corruption] = {
    "random mask": RandomMask(4, 0.5),
    "crop 1/5": CentreCrop(1 / 5),
    "crop 3/5": CentreCrop(3 / 5),
    "uncrop two sides": Uncrop(top=1 / 5, bottom=1 / 5),
    "uncrop four sides": Uncrop.all_around(1 / 5),
}
ON_32: dict[str, Corruption] = {
    "random mask": RandomMask(4, 0.5),
    "crop 1/4": CentreCrop(1 / 4),
    "crop 1/2": CentreCrop(1 / 2),
    "uncrop 1/8": Uncrop.all_around(1 / 8),
    "uncrop 1/4": Uncrop.all_around(1 / 4),
}
ON_10: dict[str, Corruption] = {**ON_20, "random mask": RandomMask(2, 0.5)}
SLOWEST = 10.0  # longest wave of the positions beside the shortest; with 10,000, most are flat on a grid of 5 x 5
AUTOENCODER: dict[str, Any] = {
    "image_size": 20, "patch_size": 4, "num_channels": 1, "mask_ratio": 0.6, "initializer_range": 0.1,
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "decoder_hidden_size": 48, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 96,
}  # fmt: skip
TOKENIZER: dict[str, Any] = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 24, 24), "latent_channels": 8,
    "num_vq_embeddings": 128, "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 8, "mid_block_add_attention": False,
}  # fmt: skip
TOKENIZER_STEPS = 300
UNET: dict[str, Any] = {
    "sample_size": 10, "in_channels": 2, "out_channels": 1, "block_out_channels": (24, 48), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 8,
    "add_attention": False,
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Pictures, a family of models, and what is forgotten.

    Attributes:
        name: In the names of results.
        about: One line for the table.
        load: Training pictures and others of the same kinds, in [0, 1], with labels.
        kinds: How many labels there are.
        forgotten: Labels of what is forgotten.
        family: Of the model.
        build: Makes an untrained model.
        corruptions: What is restored, by name; the first is that of relearning and of the plots.
        passes: Over the training pictures, by an original.
        batch_size: Of training and unlearning.
        learning_rate: The peak of training.
        steps: Of unlearning, about a twentieth of those of training.
        tuning_steps: Of tuning, for extrapolation and for the control.
        tuning_rate: The peak of tuning.
        remap: Settings of `LatentRemap` with noise as target.
        baseline_rate: The peak of the baselines.
        measured: Pictures of each set that are measured.
        relearning: Pictures of the forget set that an attacker has.
        judge_epochs: Passes of the classifier whose features the Fréchet distance rests on.
        seeds: How many originals.
        oracles: How many in all.
        sweeps: Whether alpha and the size of the retain set are varied.
    """

    name: str
    about: str
    load: Callable[[Size], tuple[TensorDataset, TensorDataset]]
    kinds: int
    forgotten: tuple[int, ...]
    family: ImageModel
    build: Callable[[Size], nn.Module]
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: ON_20)
    passes: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    steps: int = 45
    tuning_steps: int = 80
    tuning_rate: float = 3e-3
    remap: Mapping[str, Any] = field(default_factory=lambda: {"learning_rate": 1e-3, "forget_weight": 0.2})
    baseline_rate: float = 1e-3
    measured: int = 250
    relearning: int = 64
    judge_epochs: int = 4
    seeds: int = 3
    oracles: int = 3
    sweeps: bool = False

    def task(self, corruption: str | None = None) -> ImageToImage:
        """What the model is for."""
        chosen = self.corruptions[corruption or next(iter(self.corruptions))]
        return ImageToImage(self.family, chosen, decoder_learning_rate=self.learning_rate, decoder_steps=100)

    def recipe(self, size: Size, examples: int) -> Supervised:
        """How originals and oracles are trained: in equally many steps, however many examples there are."""
        passes = self.passes * len(self.load(size)[0]) / examples
        optimizer = Optimizer(self.learning_rate, schedule=Schedule.ONE_CYCLE)
        return Supervised(partial(self.build, size), self.task(), passes, self.batch_size, optimizer, execution=QUIET)

    def proxy(self, size: Size) -> TensorDataset:
        """Pictures that no model was trained on, of half of the kinds that are kept."""
        kept = [kind for kind in range(self.kinds) if kind not in self.forgotten]
        others = self.load(size)[1]
        rows = torch.isin(others.tensors[1], torch.tensor(kept[: len(kept) // 2])).nonzero()[:, 0]
        return TensorDataset(*(column[rows] for column in others.tensors))

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        left = ("load", "build", "family", "corruptions", "about", "seeds")
        plain = {name: value for name, value in vars(self).items() if name not in left}
        shape = {"mae": AUTOENCODER, "tokens": TOKENIZER, "diffusion": UNET}
        return {
            **plain,
            "family": repr(self.family),
            "corruptions": {name: repr(each) for name, each in self.corruptions.items()},
            "shape": next(shape[kind] for kind in shape if self.name.endswith(kind)),
        }


def worlds() -> dict[str, World]:
    """By name, in the order in which they are computed."""
    mae = MaskedAutoencoder()
    found = (
        World(
            "mnist-mae",
            "MNIST forgets 3 and 7",
            digits,
            10,
            (3, 7),
            mae,
            autoencoder,
            passes=24,
            steps=90,
            tuning_steps=160,
            sweeps=True,
        ),
        World(
            "faces-mae",
            "ORL faces forget a person",
            faces,
            40,
            (6,),
            mae,
            partial(autoencoder, image_size=32),
            ON_32,
            passes=60,
            batch_size=32,
            steps=60,
            tuning_steps=110,
            relearning=8,
            judge_epochs=15,
        ),
        World(
            "cifar10-mae",
            "CIFAR-10 forgets automobiles and horses",
            photographs,
            10,
            (1, 7),
            mae,
            partial(autoencoder, image_size=32, num_channels=3),
            ON_32,
            passes=7,
            steps=26,
            tuning_steps=48,
            measured=150,
            judge_epochs=8,
        ),
        World(
            "mnist-tokens",
            "MNIST forgets 3 and 7",
            digits,
            10,
            (3, 7),
            MaskedTokens(),
            token_model,
        ),
        World(
            "mnist-diffusion",
            "MNIST at 10 pixels forgets 3 and 7",
            small_digits,
            10,
            (3, 7),
            InpaintingDiffusion(
                noise_levels=200, first_variance=1e-4, last_variance=0.05, sampling_steps=10, mask_patch=2
            ),
            diffusion_model,
            ON_10,
            measured=100,
        ),
    )
    return {world.name: world for world in found}


@cache
def digits(size: Size) -> tuple[TensorDataset, TensorDataset]:
    """So many digits of each class without their blank border: (examples, 1, 20, 20)."""
    with np.load(_file("mnist.npz"), allow_pickle=False) as arrays:
        parts = (("train", size.train_per_class), ("test", size.test_per_class))
        return tuple(_first(arrays[f"x_{part}"], arrays[f"y_{part}"], count) for part, count in parts)  # pyright: ignore


@cache
def small_digits(size: Size) -> tuple[TensorDataset, TensorDataset]:
    """The same digits at half the resolution: (examples, 1, 10, 10)."""
    return tuple(TensorDataset(F.avg_pool2d(x, 2), y) for x, y in (part.tensors for part in digits(size)))  # pyright: ignore


@cache
def faces(size: Size) -> tuple[TensorDataset, TensorDataset]:
    """40 persons, 8 pictures each and their mirror images, and 2 others likewise: (examples, 1, 32, 32)."""
    del size
    with np.load(_file("orl_faces.npz"), allow_pickle=False) as arrays:
        pictures = torch.from_numpy(arrays["x"])[:, None].float() / 255
        persons = torch.from_numpy(arrays["subject"].astype(np.int64))
    small = F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    small, persons = torch.cat([small, small.flip(3)]), torch.cat([persons - persons.min()] * 2)
    rank = torch.arange(400).remainder(10).repeat(2)
    return tuple(TensorDataset(small[rows], persons[rows]) for rows in (rank < 8, rank >= 8))  # pyright: ignore


@cache
def photographs(size: Size) -> tuple[TensorDataset, TensorDataset]:
    """CIFAR-10: (examples, 3, 32, 32)."""
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (_cifar10.MEAN, _cifar10.DEVIATION))
    parts = (part.tensors for part in _cifar10.load(size))
    return tuple(TensorDataset((x * deviation + mean).clamp(0, 1), y) for x, y in parts)  # pyright: ignore


def autoencoder(size: Size, **changes: Any) -> nn.Module:
    """A masked autoencoder of some 180,000 parameters, whose positions suit a small grid."""
    del size
    config = ViTMAEConfig(**{**AUTOENCODER, **changes})
    model = masked_autoencoder(config)
    with torch.no_grad():
        for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
            positions = model.get_parameter(name)
            positions.copy_(_positions(config.image_size // config.patch_size, positions.shape[2]))
    return model


def _positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row, and zeros for the class token: (1, 1 + side², width)."""
    frequencies = SLOWEST ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    return F.pad(torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1), (0, 0, 1, 0))[None]


def token_model(size: Size) -> nn.Module:
    """A transformer over 25 tokens of a VQ model that never saw the forgotten digits."""
    return MaskedTokenModel(tokenizer(size), 5, width=64)


@cache
def tokenizer(size: Size) -> VQModel:
    """A VQ model of digits of the kinds that are kept."""
    kept = split(digits(size)[0], classes=(3, 7)).retain
    images = torch.stack([kept[row][0] for row in range(len(kept))])
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(9)
        model = VQModel(**TOKENIZER)
        fill_codebook(model, images[:256])
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(TOKENIZER_STEPS):
            tokenizer_losses(model, images[torch.randint(len(images), (64,))]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def diffusion_model(size: Size) -> nn.Module:
    """A small UNet."""
    del size
    return UNet2DModel(**UNET)


@cache
def _judge(load: Any, kinds: int, epochs: int, size: Size) -> FeatureNetwork:
    known, data = Classification(kinds), load(size)[0]
    model = Supervised(partial(small_cnn, data.tensors[0].shape[1], kinds), known, epochs=epochs, execution=QUIET)(
        data, 0
    )
    return classifier_network(model, known, "a small CNN trained on these pictures")


def judge(world: World, size: Size) -> FeatureNetwork:
    """A classifier of all kinds, on whose features the Fréchet distance rests."""
    return _judge(world.load, world.kinds, world.judge_epochs, size)


def batch_of(world: World, rows: Any) -> ImageBatch:
    """All of a set in one batch."""
    return world.task().collate([rows[place] for place in range(len(rows))])


def _file(name: str) -> Path:
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / name).exists():
        raise SystemExit(f"set EXPUNGE_DATA_DIR to a folder that holds {name}")
    return Path(root) / name


def _first(images: Any, labels: Any, count: int) -> TensorDataset:
    """The first so many of each label, in their order."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == kind)[:count] for kind in range(10)]))
    return TensorDataset(
        torch.from_numpy(images[chosen])[:, None, 4:24, 4:24].float() / 255, torch.from_numpy(labels[chosen]).long()
    )
