"""Masked autoencoders: `ViTMAEForPreTraining` of transformers, which encodes the visible patches alone."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from expunge.errors import CorruptionError, ModelError, SettingError
from expunge.image_models.base import (
    Draw,
    ImageModel,
    Prediction,
    patches_of,
    pixels_of,
    random_patches,
    require_images,
    reset,
    unwrapped,
)

_FIXED = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
_NEVER_ZERO = (*_FIXED, "vit.embeddings.cls_token", "decoder.mask_token")
_NORM_EPSILON = 1e-6  # what transformers adds to a patch's variance where it normalises patches


@dataclass(frozen=True)
class MaskedAutoencoder(ImageModel):
    """`ViTMAEForPreTraining`: patches are hidden, the visible ones encoded, the others drawn by the decoder.

    Where the model was trained on normalised patches (`norm_pix_loss`), what it draws has no brightness of its own:
    mean and deviation of the true patch are put in, for every model alike.

    Args:
        encoder: As in `ImageModel`; by default `vit`.
        mean: Of each channel, taken off before the model sees an image; those of ImageNet for the published weights.
        deviation: Of each channel, by which it is divided.
    """

    says_pixels: ClassVar = True

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Check that there are as many means as deviations, and that these are above 0."""
        super().__post_init__()
        if len(self.mean) != len(self.deviation):
            raise SettingError(f"{len(self.mean)} means and {len(self.deviation)} deviations; give one each a channel")
        if any(not 0 < value < math.inf for value in self.deviation):
            raise SettingError(f"deviation must be above 0, not {self.deviation}")

    def family_encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The vision transformer."""
        del model
        return ("vit",)

    def family_decoder(self, model: nn.Module) -> tuple[str, ...]:
        """The decoder with its mask token."""
        del model
        return ("decoder",)

    def fixed(self, model: nn.Module) -> tuple[str, ...]:
        """The sinusoidal positions."""
        del model
        return _FIXED

    def require_usable(self, model: nn.Module, images: Tensor) -> None:
        """Raise where this is no such model, its positions or tokens are zero, or channels or sides do not fit."""
        inner = unwrapped(model)
        if not isinstance(inner, ViTMAEForPreTraining):
            raise ModelError(f"a {type(inner).__name__} is no ViTMAEForPreTraining; choose the family of your model")
        for name in _NEVER_ZERO:
            if not bool(inner.get_parameter(name).any()):
                raise ModelError(
                    f"{name} is zero throughout, as transformers leaves it in a model made from a configuration; make "
                    "it with `expunge.image_models.masked_autoencoder(config)`"
                )
        if len(self.mean) not in (1, inner.config.num_channels):
            raise SettingError(
                f"{len(self.mean)} means and deviations are given for a model of {inner.config.num_channels} channels; "
                "give one for each channel, or a single one for all"
            )
        require_images(images, inner.config.num_channels, cast("tuple[int, int]", inner.vit.embeddings.image_size))

    def aligned(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Whole patches."""
        size = _patch(model)
        return pixels_of(patches_of(hidden, size), size)

    def training_mask(self, model: nn.Module, shape: Sequence[int], draw: Draw) -> Tensor:
        """Patches at random, as many as the configuration's `mask_ratio` says."""
        inner = _inner(model)
        side = int(inner.vit.embeddings.patch_embeddings.num_patches**0.5)
        count = side * side - int(side * side * (1 - inner.config.mask_ratio))
        patches = random_patches((shape[0], side, side), torch.tensor(count), draw, _device(inner))
        return pixels_of(patches, _patch(inner))

    def losses(
        self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw, target: Tensor | None = None
    ) -> Tensor:
        """Mean squared error over hidden patches, of normalised ones where the configuration says so: (batch,)."""
        said = self.predict(model, images, hidden, draw)
        truth, _, _ = self._truth(_inner(model), images if target is None else target)
        return said.distance(truth)

    def predict(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Prediction:
        """Patches, (batch, patches, pixels)."""
        del draw
        patches = patches_of(hidden, _patch(model)).flatten(1)
        shown = self._shown(model, images)

        def decoded(rows: Tensor) -> Tensor:
            return cast(Tensor, model(pixel_values=shown[rows], noise=_ranks(patches[rows])).logits).float()

        return Prediction(_by_count(model, patches, decoded), patches[..., None])

    def reconstruct(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Tensor:
        """What the decoder draws, in [0, 1]."""
        inner = _inner(model)
        _, centre, scale = self._truth(inner, images)
        drawn = inner.unpatchify(self.predict(model, images, hidden, draw).values * scale + centre)
        mean, deviation = self._statistics(drawn)
        return (drawn * deviation + mean).clamp(0, 1)

    def encode(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> list[Tensor]:
        """Class token and visible patches, (batch, 1 + visible, features).

        Where masks of a batch hide different numbers of patches, images with fewer visible ones end in zeros.
        """
        del draw
        inner = _inner(model)
        patches = patches_of(hidden, _patch(inner)).flatten(1)
        shown = self._shown(model, images)
        longest = 1 + int((~patches).sum(1).max())

        def encoded(rows: Tensor) -> Tensor:
            seen = cast(Any, inner).vit(shown[rows], noise=_ranks(patches[rows])).last_hidden_state.float()
            return F.pad(seen, (0, 0, 0, longest - seen.shape[1]))

        return [_by_count(model, patches, encoded)]

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Patches of whole images, averaged: (batch, features)."""
        nothing = torch.zeros_like(images[:, :1], dtype=torch.bool)
        return self.encode(model, images, nothing, Draw())[0][:, 1:].mean(1)

    def reset_decoder(self, model: nn.Module) -> None:
        """Fresh layers and a fresh mask token; positions stay."""
        inner = _inner(model)
        for layer in inner.decoder.children():
            reset(layer)
        nn.init.normal_(inner.decoder.mask_token, std=inner.config.initializer_range)

    def _shown(self, model: nn.Module, images: Tensor) -> Tensor:
        mean, deviation = self._statistics(images)
        return ((images - mean) / deviation).to(next(model.parameters()).dtype)

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.tensor(values, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
            for values in (self.mean, self.deviation)
        )  # pyright: ignore[reportReturnType]

    def _truth(self, inner: ViTMAEForPreTraining, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The patches that are to be drawn, and what turns them into pixels: a centre and a scale."""
        patches = inner.patchify(self._shown(inner, images)).float()
        if not inner.config.norm_pix_loss:
            return patches, patches.new_zeros(()), patches.new_ones(())
        centre = patches.mean(2, keepdim=True)
        scale = (patches.var(2, keepdim=True) + _NORM_EPSILON).sqrt()
        return (patches - centre) / scale, centre, scale


def masked_autoencoder(config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """An untrained model with its tokens drawn and its sinusoidal positions filled in, ready for training.

    transformers leaves all four at zero in a model that is made from a configuration.
    """
    model = ViTMAEForPreTraining(config)
    side = int(model.vit.embeddings.patch_embeddings.num_patches**0.5)
    with torch.no_grad():
        for name in _FIXED:
            positions = model.get_parameter(name)
            positions.copy_(_positions(side, positions.shape[2]))
            positions.requires_grad_(False)
        nn.init.normal_(model.vit.embeddings.cls_token, std=config.initializer_range)
        nn.init.normal_(model.decoder.mask_token, std=config.initializer_range)
    return model


def _positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and of row, and zeros for the class token: (1, 1 + side², width).

    Source: He et al. 2022 (arXiv 2111.06377), appendix A.1, with the frequencies of Vaswani et al. 2017.
    """
    if width % 4:
        raise SettingError(f"the width of encoder and decoder must be a multiple of 4 for its positions, not {width}")
    frequencies = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return F.pad(waves, (0, 0, 1, 0))[None]


def _by_count(model: nn.Module, patches: Tensor, forward: Any) -> Tensor:
    """Pass the images that hide equally many patches through the model together."""
    counts = patches.sum(1)
    if int(counts.max()) == patches.shape[1]:
        raise CorruptionError("a mask hides every patch of an image, and nothing is left to restore it from")
    found: dict[int, Tensor] = {}
    kinds = cast("list[int]", counts.unique().tolist())
    for count in kinds:
        rows = (counts == count).nonzero()[:, 0]
        with _hiding(model, count):
            found[count] = forward(rows)
    if len(kinds) == 1:
        return found[kinds[0]]
    order = torch.cat([(counts == count).nonzero()[:, 0] for count in kinds])
    return torch.cat([found[count] for count in kinds])[order.argsort()]


def _ranks(patches: Tensor) -> Tensor:
    """Noise that puts visible patches before hidden ones, each in their order; ties would be sorted at will."""
    count = patches.shape[1]
    return patches.float() + torch.arange(count, device=patches.device) / (2 * count)


@contextmanager
def _hiding(model: nn.Module, count: int) -> Generator[None]:
    """Make the model's own shuffling hide exactly so many patches, those of the largest noise."""
    config = _inner(model).vit.embeddings.config
    patches, before = _inner(model).vit.embeddings.patch_embeddings.num_patches, config.mask_ratio
    config.mask_ratio = max(count - 0.5, 0) / patches
    try:
        yield
    finally:
        config.mask_ratio = before


def _inner(model: nn.Module) -> ViTMAEForPreTraining:
    return cast(ViTMAEForPreTraining, unwrapped(model))


def _patch(model: nn.Module) -> int:
    return cast(int, _inner(model).config.patch_size)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
