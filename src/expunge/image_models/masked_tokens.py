"""Masked token models: a VQ model turns an image into tokens, and a transformer restores those that are hidden."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import ModelError, SettingError, ShapeError
from expunge.image_models.base import (
    Draw,
    ImageModel,
    Prediction,
    masked_mean,
    patches_of,
    pixels_of,
    random_patches,
    require_images,
    reset,
    unwrapped,
)
from expunge.settings import require_at_least, require_below, require_between, require_whole


class MaskedTokenModel(nn.Module):
    """A frozen VQ model and a masked transformer over its tokens, after MAGE (Li et al. 2023, arXiv 2211.09117).

    The encoder reads the visible tokens and a mask token for each hidden one; the decoder gives logits of every token.
    (MAGE's encoder leaves out some hidden tokens to save time; this one leaves out none.)

    Args:
        tokenizer: A `VQModel` of diffusers, already trained; nothing here trains it.
        side: Tokens a side of an image.
        width: Features of a token.
        encoder_layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder.
        heads: Attention heads.
        tied: Whether the output head shares its weights with the token embedding, as in MAGE. Methods that train the
            encoder alone part the two; weights in which they differ part them in the model that they are loaded into.

    Raises:
        ModelError: The width cannot be parted among the heads.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        side: int,
        *,
        width: int = 64,
        encoder_layers: int = 4,
        decoder_layers: int = 2,
        heads: int = 4,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(f"width {width} cannot be parted among {heads} heads; choose a multiple")
        self.tokenizer = tokenizer
        self.side = side
        self.codes = int(cast(Any, tokenizer).config.num_vq_embeddings)
        self.embedding = nn.Embedding(self.codes + 1, width)  # the last one stands for what is hidden
        self.positions = nn.Parameter(torch.randn(1, side * side, width) * 0.02)
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder_positions = nn.Parameter(torch.randn(1, side * side, width) * 0.02)
        self.decoder = nn.ModuleList(Block(width, heads) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.codes + 1)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Logits of every token: (batch, side², codes).

        Args:
            tokens: (batch, side²) int64.
            hidden: (batch, side²) bool.
        """
        return self.decode(self.encode(tokens, hidden))

    def encode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Latents: (batch, side², width)."""
        seen = self.embedding(tokens.masked_fill(hidden, self.codes)) + self.positions
        for block in self.encoder:
            seen = block(seen)
        return self.encoder_norm(seen)

    def decode(self, latents: Tensor) -> Tensor:
        """Logits: (batch, side², codes)."""
        seen = latents + self.decoder_positions
        for block in self.decoder:
            seen = block(seen)
        return self.head(self.decoder_norm(seen))[..., : self.codes]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        """Part a tied head where the weights that are to be loaded differ from the embedding's."""
        # One tensor for both would keep what was written last: the head's, and with it what the embedding forgot.
        given = [state_dict.get(f"{prefix}{name}.weight") for name in ("embedding", "head")]
        own = self.embedding.weight
        if self.head.weight is own and _differ(*given):
            self.head.weight = nn.Parameter(own.detach().clone(), own.requires_grad)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @torch.no_grad()
    def tokens_of(self, images: Tensor) -> Tensor:
        """Tokens of images in [0, 1], (batch, side²) int64: the same in mixed precision, which would flip some."""
        tokenizer = cast(Any, self.tokenizer)
        with torch.autocast(images.device.type, enabled=False):
            latents = cast(Tensor, tokenizer.encode(images.to(self.positions.dtype) * 2 - 1).latents)
            return cast(Tensor, tokenizer.quantize(latents)[2][2]).reshape(len(images), -1)

    @torch.no_grad()
    def images_of(self, tokens: Tensor) -> Tensor:
        """What the VQ model makes of tokens: (batch, channels, height, width) in [0, 1]."""
        tokenizer = cast(Any, self.tokenizer)
        entries = cast(Tensor, tokenizer.quantize.embedding(tokens)).movedim(2, 1)
        drawn = tokenizer.decode(entries.unflatten(2, (self.side, self.side)), force_not_quantize=True).sample
        return ((cast(Tensor, drawn).float() + 1) / 2).clamp(0, 1)


class Block(nn.Module):
    """Attention and a two-layer network, each behind a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, values: Tensor) -> Tensor:
        """(batch, tokens, width) to the same shape."""
        parted = self.queries_keys_values(self.before_attention(values)).unflatten(2, (3, self.heads, -1))
        attended = F.scaled_dot_product_attention(*parted.movedim(2, 0).transpose(2, 3).unbind())
        values = values + self.joined(attended.transpose(1, 2).flatten(2))
        return values + self.network(self.before_network(values))


@dataclass(frozen=True)
class MaskedTokens(ImageModel):
    """`MaskedTokenModel`: tokens are hidden, and restored a few at a time, the surest first.

    What the model is shown is tokenised with the hidden pixels replaced by the mean colour of the visible ones, since a
    token holds something of its neighbours. Its loss is the cross-entropy of the hidden tokens of the whole image.

    Args:
        encoder: As in `ImageModel`; by default embedding, positions, blocks and norm of the encoder.
        mask_mean: Mean of the normal distribution that the hidden share of a training image is drawn from. Default
            .55 (Li et al. 2023, code of MAGE, as the following three).
        mask_deviation: Its standard deviation, .25.
        mask_least: Where it is cut off below, .5.
        mask_most: And above, 1.
        smoothing: Label smoothing of the cross-entropy. Default .1 (ibid.).
        decoding_steps: Passes in which hidden tokens are restored. Default 8 (Chang et al. 2022, arXiv 2202.04200;
            20 in the code of MAGE), on their cosine schedule.
        temperature: Of drawing tokens; 0 takes the likeliest.
    """

    mask_mean: float = 0.55
    mask_deviation: float = 0.25
    mask_least: float = 0.5
    mask_most: float = 1.0
    smoothing: float = 0.1
    decoding_steps: int = 8
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_between(self, 0, 1, "mask_mean")
        require_at_least(self, 0.01, "mask_deviation", "mask_least")
        require_below(self, 1, "smoothing")
        require_at_least(self, 0, "smoothing", "temperature")
        require_at_least(self, self.mask_least, "mask_most")
        if self.mask_most > 1:
            raise SettingError(f"mask_most must be at most 1, which is the whole image, not {self.mask_most!r}")
        require_whole(self, "decoding_steps")

    def family_encoder(self, model: nn.Module) -> tuple[str, ...]:
        """Everything before the latents but the VQ model."""
        del model
        return ("embedding", "positions", "encoder", "encoder_norm")

    def family_decoder(self, model: nn.Module) -> tuple[str, ...]:
        """Everything behind the latents but the VQ model."""
        del model
        return ("decoder_positions", "decoder", "decoder_norm", "head")

    def require_usable(self, model: nn.Module, images: Tensor) -> None:
        """Raise where this is no such model, or images have another shape."""
        inner = unwrapped(model)
        if not isinstance(inner, MaskedTokenModel):
            raise ModelError(f"a {type(inner).__name__} is no MaskedTokenModel; choose the family of your model")
        config = cast(Any, inner.tokenizer).config
        pixels = inner.side * _pixels_a_token(inner)
        require_images(images, int(config.in_channels), (pixels, pixels))

    def aligned(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Whole tokens."""
        size = _pixels_a_token(_inner(model))
        return pixels_of(patches_of(hidden, size), size)

    def training_mask(self, model: nn.Module, shape: Sequence[int], draw: Draw) -> Tensor:
        """Tokens at random, of a share that is drawn for each image."""
        inner = _inner(model)
        normal = torch.distributions.Normal(self.mask_mean, self.mask_deviation)
        low, high = (float(normal.cdf(torch.tensor(end))) for end in (self.mask_least, self.mask_most))
        drawn = draw.uniform("hidden share", (shape[0], 1), inner.positions.device)
        share = normal.icdf(low + (high - low) * drawn.cpu()).clamp(self.mask_least, self.mask_most)
        counts = (share * inner.side**2).ceil()
        patches = random_patches((shape[0], inner.side, inner.side), counts, draw, inner.positions.device)
        return pixels_of(patches, _pixels_a_token(inner))

    def losses(
        self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw, target: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy of the hidden tokens in nats, with labels smoothed: (batch,)."""
        said = self.predict(model, images, hidden, draw)
        truth = _inner(model).tokens_of(images if target is None else target)
        each = F.cross_entropy(
            said.values.flatten(0, 1), truth.flatten(), reduction="none", label_smoothing=self.smoothing
        )
        return masked_mean(each.view_as(truth), said.weights[..., 0])

    def predict(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Prediction:
        """Logits of tokens, (batch, tokens, codes)."""
        del draw
        tokens, gone = self._shown(_inner(model), images, hidden)
        return Prediction(cast(Tensor, model(tokens, gone)).float(), gone[..., None])

    def reconstruct(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Tensor:
        """What the VQ model makes of visible and restored tokens, in [0, 1]."""
        inner = _inner(model)
        tokens, gone = self._shown(inner, images, hidden)
        counts = gone.sum(1)
        for step in range(1, self.decoding_steps + 1):
            logits = cast(Tensor, model(tokens, gone)).float()
            chosen, sure = self._chosen(logits, draw, step)
            tokens = torch.where(gone, chosen, tokens)
            left = (counts * math.cos(math.pi / 2 * step / self.decoding_steps)).floor()
            gone = gone & (sure.masked_fill(~gone, math.inf).argsort(1).argsort(1) < left[:, None])
        return inner.images_of(tokens)

    def encode(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> list[Tensor]:
        """Latents of all tokens, (batch, tokens, features)."""
        del draw
        inner = _inner(model)
        return [inner.encode(*self._shown(inner, images, hidden)).float()]

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Latents of whole images, averaged: (batch, features)."""
        inner = _inner(model)
        tokens = inner.tokens_of(images)
        return inner.encode(tokens, torch.zeros_like(tokens, dtype=torch.bool)).float().mean(1)

    def reset_decoder(self, model: nn.Module) -> None:
        """Fresh blocks, norm, head and positions."""
        inner = _inner(model)
        for layer in (inner.decoder, inner.decoder_norm, inner.head):
            reset(layer)
        nn.init.normal_(inner.decoder_positions, std=0.02)

    def _shown(self, inner: MaskedTokenModel, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of what is visible, and which tokens are hidden: (batch, tokens) each."""
        visible = ~hidden
        mean = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
        tokens = inner.tokens_of(torch.where(hidden, mean, images))
        return tokens, patches_of(hidden, _pixels_a_token(inner)).flatten(1)

    def _chosen(self, logits: Tensor, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
        """A token for each place, and the log-probability of it: (batch, tokens) each."""
        log_probabilities = logits.log_softmax(2)
        scores = log_probabilities
        if self.temperature > 0:
            uniform = draw.uniform(f"token {step}", logits.shape, logits.device).clamp(min=1e-12)
            scores = scores - self.temperature * (-uniform.log()).log()
        chosen = scores.argmax(2)
        return chosen, log_probabilities.gather(2, chosen[..., None])[..., 0]


def tokenizer_losses(tokenizer: nn.Module, images: Tensor) -> Tensor:
    """What a `VQModel` of diffusers is trained on before anything else: (batch,).

    The mean squared error of its reconstruction, with pixels from -1 to 1, and the codebook's own loss, which is a mean
    over the batch. Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3.
    """
    said = cast(Any, tokenizer)(images * 2 - 1)
    return (said.sample - (images * 2 - 1)).square().flatten(1).mean(1) + said.commit_loss.mean()


def fill_codebook(tokenizer: nn.Module, images: Tensor) -> None:
    """Draw the codebook of an untrained `VQModel` from what its encoder makes of images, in place.

    A codebook as diffusers initialises it lies so near zero that most of its entries are never used.

    Raises:
        ShapeError: The images give fewer places than the codebook has entries.
    """
    inner = cast(Any, tokenizer)
    with torch.no_grad():
        places = cast(Tensor, inner.encode(images * 2 - 1).latents).movedim(1, 3).flatten(0, 2)
        entries = inner.quantize.embedding.weight
        if len(places) < len(entries):
            raise ShapeError(f"the images give {len(places)} places for {len(entries)} entries; pass more images")
        entries.copy_(places[torch.randperm(len(places), device=places.device)[: len(entries)]])


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and not torch.equal(one.cpu(), other.to("cpu", one.dtype))


def _pixels_a_token(inner: MaskedTokenModel) -> int:
    return 2 ** (len(cast("Sequence[int]", cast(Any, inner.tokenizer).config.block_out_channels)) - 1)


def _inner(model: nn.Module) -> MaskedTokenModel:
    return cast(MaskedTokenModel, unwrapped(model))
