"""Conditional diffusion: a `UNet2DModel` of diffusers that removes noise from what is hidden, given what is visible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.errors import MissingNeedError, ModelError, SettingError
from expunge.image_models.base import (
    Draw,
    ImageModel,
    Prediction,
    pixels_of,
    random_patches,
    require_images,
    reset,
    unwrapped,
)
from expunge.settings import require_between, require_positive, require_whole


@dataclass(frozen=True)
class InpaintingDiffusion(ImageModel):
    """`UNet2DModel` with twice as many channels in as out: the condition, then the noisy image (Saharia et al. 2022).

    The condition is the image with Gaussian noise in the hidden part; of the noisy image, the visible part is the image
    itself. The network predicts the noise of the hidden part. Pixels run from -1 to 1 inside.

    The embedding of time is used by encoder and decoder alike, so an encoder-only method leaves it as it is.

    Args:
        encoder: As in `ImageModel`; by default `conv_in`, `down_blocks` and `mid_block`.
        noise_levels: Steps of the noising. Default 2,000, with linear variances (public code of Palette, in-painting,
            as the following two).
        first_variance: Of the first step, 1e-6.
        last_variance: Of the last step, .01.
        sampling_steps: Steps in which noise is removed (DDIM without noise of its own, Song et al. 2021, arXiv
            2010.02502, equation 12). Default ours.
        mask_patch: Pixels a side of the squares that are hidden while it is trained. Default ours; Palette hides boxes
            and brush strokes.
        mask_share: Mean share of an image that is hidden while it is trained; the share is uniform between half and one
            and a half times that. Default ours.
        measured_levels: Evenly spread noise levels over which the loss is averaged in evaluation mode. Default ours.
    """

    noise_levels: int = 2000
    first_variance: float = 1e-6
    last_variance: float = 0.01
    sampling_steps: int = 20
    mask_patch: int = 4
    mask_share: float = 0.5
    measured_levels: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_whole(self, "noise_levels", "sampling_steps", "mask_patch", "measured_levels")
        require_positive(self, "first_variance")
        require_between(self, 0, 1, "last_variance")
        if self.first_variance > self.last_variance:
            raise SettingError(
                f"first_variance must be at most last_variance ({self.last_variance!r}), not {self.first_variance!r}: "
                "noise grows from level to level"
            )
        require_between(self, 0, 2 / 3, "mask_share")

    def family_encoder(self, model: nn.Module) -> tuple[str, ...]:
        """The way down and the middle."""
        del model
        return ("conv_in", "down_blocks", "mid_block")

    def family_decoder(self, model: nn.Module) -> tuple[str, ...]:
        """The way up."""
        del model
        return ("up_blocks", "conv_norm_out", "conv_out")

    def require_usable(self, model: nn.Module, images: Tensor) -> None:
        """Raise where this is no such network, its channels are not paired, or images have another shape."""
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
            from diffusers.models.unets.unet_2d_blocks import AttnSkipDownBlock2D, SkipDownBlock2D
        except ImportError as error:
            raise MissingNeedError(
                "diffusion needs diffusers: install it with `pip install 'expunge[images]'`"
            ) from error
        inner = unwrapped(model)
        if not isinstance(inner, UNet2DModel):
            raise ModelError(f"a {type(inner).__name__} is no UNet2DModel; choose the family of your model")
        config = cast(Any, inner).config
        if config.in_channels != 2 * config.out_channels:
            raise ModelError(
                f"the UNet has {config.in_channels} channels in and {config.out_channels} out; it must have twice as "
                "many in as out, for the condition beside the noisy image"
            )
        if any(isinstance(block, SkipDownBlock2D | AttnSkipDownBlock2D) for block in inner.down_blocks):
            raise ModelError("a UNet with skip blocks (SkipDownBlock2D) is not supported; use DownBlock2D")
        given = config.sample_size or images.shape[2:]
        sides = given if isinstance(given, Sequence) else (given, given)
        require_images(images, config.out_channels, cast("tuple[int, int]", tuple(sides)))

    def aligned(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """The mask as it is."""
        del model
        return hidden

    def training_mask(self, model: nn.Module, shape: Sequence[int], draw: Draw) -> Tensor:
        """Squares at random, cut off at the border where they do not divide the image."""
        device, size = next(model.parameters()).device, self.mask_patch
        rows, columns = -(-shape[2] // size), -(-shape[3] // size)
        share = self.mask_share * (0.5 + draw.uniform("hidden share", (shape[0], 1), device))
        counts = (share * rows * columns).round().clamp(1, max(1, rows * columns - 1))
        patches = random_patches((shape[0], rows, columns), counts, draw, device)
        return pixels_of(patches, size)[..., : shape[2], : shape[3]]

    def losses(
        self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw, target: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the predicted noise in the hidden part: (batch,).

        At a random noise level for each image, or, where the numbers of an image are its own, averaged over
        `measured_levels` of them.
        """
        truth = images if target is None else target
        noise = draw.normal("noise", images.shape, images.device)
        each = [
            Prediction(self._noise(model, images, truth, hidden, noise, level, draw), hidden).distance(noise)
            for level in self._levels(images, draw)
        ]
        return torch.stack(each).mean(0)

    def predict(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Prediction:
        """The noise of the hidden part at a random level, (batch, channels, height, width)."""
        noise = draw.normal("noise", images.shape, images.device)
        level = self._random_level(images, draw)
        return Prediction(self._noise(model, images, images, hidden, noise, level, draw), hidden)

    def reconstruct(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Tensor:
        """A sample for the hidden part, in [0, 1]."""
        kept = self._kept(images.device)
        levels = torch.linspace(self.noise_levels - 1, 0, self.sampling_steps, device=images.device).long()
        current = draw.normal("start", images.shape, images.device)
        condition, drawn = self._condition(images, hidden, draw), current
        for level, following in zip(levels, [*levels[1:], None], strict=True):
            shown = torch.where(hidden, current, 2 * images - 1)
            noise = self._said(model, condition, shown, level.expand(len(images)))
            drawn = ((current - (1 - kept[level]).sqrt() * noise) / kept[level].sqrt()).clamp(-1, 1)
            if following is not None:
                current = kept[following].sqrt() * drawn + (1 - kept[following]).sqrt() * noise
        return (drawn + 1) / 2

    def encode(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> list[Tensor]:
        """What the way up is given: every map on the way down, and the middle, at a random noise level."""
        noise = draw.normal("noise", images.shape, images.device)
        level = self._random_level(images, draw)
        shown = self._noisy(images, images, hidden, noise, level)
        return self._maps(model, self._condition(images, hidden, draw), shown, level)

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """The middle of whole images without noise, averaged over places: (batch, channels)."""
        level = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return self._maps(model, 2 * images - 1, 2 * images - 1, level)[-1].mean((2, 3))

    def reset_decoder(self, model: nn.Module) -> None:
        """A fresh way up."""
        for path in self.family_decoder(model):
            reset(model.get_submodule(path))

    def _kept(self, device: torch.device) -> Tensor:
        """Share of the variance of an image that each level keeps: (levels,)."""
        variances = torch.linspace(
            self.first_variance, self.last_variance, self.noise_levels, dtype=torch.double, device=device
        )
        return (1 - variances).cumprod(0).float()

    def _random_level(self, images: Tensor, draw: Draw) -> Tensor:
        return (draw.uniform("level", (len(images), 1), images.device)[:, 0] * self.noise_levels).long()

    def _levels(self, images: Tensor, draw: Draw) -> list[Tensor]:
        if draw.positions is None:
            return [self._random_level(images, draw)]
        spread = (torch.arange(self.measured_levels, device=images.device) + 0.5) / self.measured_levels
        return [level.expand(len(images)) for level in (spread * self.noise_levels).long()]

    def _condition(self, images: Tensor, hidden: Tensor, draw: Draw) -> Tensor:
        noise = draw.normal("condition", images.shape, images.device)
        return torch.where(hidden, noise, 2 * images - 1)

    def _noisy(self, images: Tensor, truth: Tensor, hidden: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        kept = self._kept(images.device)[level].reshape(-1, 1, 1, 1)
        return torch.where(hidden, kept.sqrt() * (2 * truth - 1) + (1 - kept).sqrt() * noise, 2 * images - 1)

    def _noise(
        self, model: nn.Module, images: Tensor, truth: Tensor, hidden: Tensor, noise: Tensor, level: Tensor, draw: Draw
    ) -> Tensor:
        shown = self._noisy(images, truth, hidden, noise, level)
        return self._said(model, self._condition(images, hidden, draw), shown, level)

    def _said(self, model: nn.Module, condition: Tensor, shown: Tensor, level: Tensor) -> Tensor:
        given = torch.cat([condition, shown], 1).to(next(model.parameters()).dtype)
        return cast(Tensor, model(given, level).sample).float()

    def _maps(self, model: nn.Module, condition: Tensor, shown: Tensor, level: Tensor) -> list[Tensor]:
        inner = cast(Any, unwrapped(model))
        given = torch.cat([condition, shown], 1).to(inner.dtype)
        given = 2 * given - 1 if inner.config.center_input_sample else given
        time = inner.time_embedding(inner.time_proj(level).to(inner.dtype))
        current = inner.conv_in(given)
        maps = [current]
        for block in inner.down_blocks:
            current, passed = block(hidden_states=current, temb=time)
            maps += passed
        return [each.float() for each in [*maps, inner.mid_block(current, time)]]
