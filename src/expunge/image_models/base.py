"""What every family of image-to-image models has in common: an encoder, a decoder, and hidden pixels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from expunge.errors import CorruptionError, EncoderError, ModelError, SettingError, ShapeError


@dataclass(frozen=True)
class Draw:
    """The random numbers of one pass.

    With a seed, the same numbers come out whenever the same purpose asks for the same shape.

    Args:
        seed: Where they come from; without one, torch's own generator, which the training loop seeds at each step.
        positions: (batch,) int64, one number an image: each image's numbers are then a function of seed, purpose and
            this number alone, and not of its place in the batch.
        rows: (batch,) int64: the images of this pass are these rows of a larger batch, and have its numbers.
        whole: Images of that larger batch.
    """

    seed: int | None = None
    positions: Tensor | None = None
    rows: Tensor | None = None
    whole: int = 0

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal numbers: `shape`, whose first axis is the batch."""
        return self._drawn(torch.randn, purpose, shape, device)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Numbers from [0, 1): `shape`, whose first axis is the batch."""
        return self._drawn(torch.rand, purpose, shape, device)

    def _drawn(self, draw: Any, purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
        if self.seed is None:
            return draw(tuple(shape), device=device)
        if self.positions is None and self.rows is not None:
            every = draw((self.whole, *shape[1:]), generator=_generator(self.seed, purpose))
            return every[self.rows].to(device)
        if self.positions is None:
            return draw(tuple(shape), generator=_generator(self.seed, purpose)).to(device)
        rows = [
            draw(tuple(shape[1:]), generator=_generator(self.seed, purpose, position))
            for position in self.positions.tolist()
        ]
        return torch.stack(rows).to(device)


@dataclass(frozen=True)
class Prediction:
    """What a decoder says of the hidden part.

    Attributes:
        values: (batch, ...), such as pixels, logits of tokens, or noise.
        weights: Which of them are of the hidden part: a shape that broadcasts to that of the values.
    """

    values: Tensor
    weights: Tensor

    def distance(self, target: Tensor) -> Tensor:
        """Mean squared difference from a target of the values' shape, over the hidden part: (batch,)."""
        return masked_mean((self.values - target).square(), self.weights)


@dataclass(frozen=True)
class Parts:
    """Names of the parameters of a model by the part they belong to.

    Attributes:
        encoder: Those that an encoder-only method trains.
        decoder: All the others, which such a method leaves as they are to the last bit.
    """

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]


@dataclass(frozen=True)
class ImageModel(ABC):
    """How a family of models hides, encodes and restores; the model itself is passed to every call.

    Images are (batch, channels, height, width) floats in [0, 1]; hidden is (batch, 1, height, width) bool, True where
    a pixel is hidden.

    Args:
        encoder: Dotted paths of modules or parameters that count as the encoder; by default the family's whole
            encoder. It may be narrower than that, but it may not reach into the decoder.

    Attributes:
        says_pixels: Whether what `predict` says, and `losses` compares, are pixels, so that a mean of pictures can be
            asked of the model as well as a picture.
    """

    says_pixels: ClassVar[bool] = False

    encoder: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the encoder is named by a tuple of paths; a family that overrides this calls it."""
        if isinstance(self.encoder, str):
            raise SettingError(f"encoder must be a tuple of paths, not text: write ({self.encoder!r},)")
        if self.encoder is not None and not self.encoder:
            raise SettingError(
                "encoder names no path; name one or more, or leave it out for the family's whole encoder"
            )

    @abstractmethod
    def family_encoder(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted paths of the whole encoder."""

    @abstractmethod
    def family_decoder(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted paths of what `reset_decoder` initialises: the decoder without what the encoder also uses."""

    @abstractmethod
    def require_usable(self, model: nn.Module, images: Tensor) -> None:
        """Raise where the model is not of this family, or not for images of this shape.

        Raises:
            ModelError: It is another kind of model, or was never initialised.
            ShapeError: The images have another size or number of channels.
        """

    @abstractmethod
    def aligned(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """The mask that the model can work with: a patch counts as hidden where any pixel of it is."""

    @abstractmethod
    def training_mask(self, model: nn.Module, shape: Sequence[int], draw: Draw) -> Tensor:
        """What the family hides while it is trained: (batch, 1, height, width) bool."""

    @abstractmethod
    def losses(
        self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw, target: Tensor | None = None
    ) -> Tensor:
        """The family's own training loss on the hidden part of each image: (batch,).

        Args:
            model: What is trained.
            images: Whose visible part it is shown.
            hidden: The mask.
            draw: Random numbers of the pass.
            target: Images whose pixels are to be put in the hidden part; by default the images themselves.
        """

    @abstractmethod
    def predict(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> "Prediction":
        """What the decoder says of the hidden part, in the form that the training loss compares; differentiable."""

    @abstractmethod
    def reconstruct(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> Tensor:
        """What the model puts in the hidden part: (batch, channels, height, width); visible pixels are not used."""

    @abstractmethod
    def encode(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: Draw) -> list[Tensor]:
        """What the encoder hands to the decoder, one tensor (batch, ...) for each connection between them."""

    @abstractmethod
    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the encoder holds of whole images, averaged over places: (batch, features)."""

    @abstractmethod
    def reset_decoder(self, model: nn.Module) -> None:
        """Initialise the decoder anew, in place, from torch's own generator."""

    def parts(self, model: nn.Module) -> Parts:
        """Which parameters are the encoder.

        Raises:
            EncoderError: A path does not exist, or reaches into the decoder; or nothing below it is trained.
        """
        inner = unwrapped(model)
        names = [name for name, _ in _named(inner)]
        family = self.family_encoder(inner)
        paths = family if self.encoder is None else self.encoder
        chosen, whole = set(_below(names, paths)), set(_below(names, family))
        covered = [name for name in names if name in chosen - whole]
        if covered:
            raise EncoderError(
                f"the encoder {', '.join(paths)} covers {len(covered)} parameters that the decoder uses, the first of "
                f"them {covered[0]}; name modules of {', '.join(family)} alone"
            )
        fixed = set(self.fixed(inner))
        if not chosen - fixed:
            raise EncoderError(
                f"the encoder {', '.join(paths)} holds nothing but what is computed ({', '.join(sorted(chosen))}), so "
                f"that nothing of it can be trained; name modules of {', '.join(family)}"
            )
        return Parts(
            tuple(name for name in names if name in chosen and name not in fixed),
            tuple(name for name in names if name not in chosen or name in fixed),
        )

    def fixed(self, model: nn.Module) -> tuple[str, ...]:
        """Names of parameters that are computed and not trained, such as sinusoidal positions; none by default."""
        del model
        return ()

    def train_encoder_only(self, model: nn.Module) -> None:
        """Leave a gradient to the encoder alone; tensors that it shares with the rest are doubled first.

        Raises:
            EncoderError: A path of the encoder does not exist, or reaches into the decoder.
        """
        _train_only(model, set(self.parts(model).encoder))

    def train_decoder_only(self, model: nn.Module) -> None:
        """Leave a gradient to the decoder alone; tensors that it shares with the rest are doubled first.

        The decoder is put in training mode and the rest in evaluation mode, so that normalisation layers of the encoder
        keep their statistics.
        """
        paths = self.family_decoder(model)
        names = [name for name, _ in _named(model)]
        _train_only(model, set(_below(names, paths)) - set(self.fixed(model)))
        model.eval()
        for name, module in model.named_modules():
            if name in paths:
                module.train()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside whatever trains it on several devices."""
    return cast(nn.Module, extract_model_from_parallel(model))


def _train_only(model: nn.Module, names: set[str]) -> None:
    part_shared(model, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def part_shared(model: nn.Module, inside: set[str]) -> None:
    """Give every tensor that is shared between parameters inside a set of names and others outside a copy of its own.

    Args:
        model: Changed in place: names outside the set get the copy.
        inside: Names of parameters.
    """
    own = {id(parameter) for name, parameter in _named(model) if name in inside}
    copies: dict[int, nn.Parameter] = {}
    for name, parameter in _named(model):
        if name not in inside and id(parameter) in own:
            copy = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, copy)


def reset(module: nn.Module) -> None:
    """Initialise every layer of a module anew by its own rule.

    Raises:
        ModelError: A layer has parameters and no such rule.
    """
    for layer in module.modules():
        if next(layer.parameters(recurse=False), None) is None:
            continue
        rule = getattr(layer, "reset_parameters", None)
        if rule is None:
            raise ModelError(f"a {type(layer).__name__} of the decoder has no reset_parameters, so none can be fresh")
        rule()


def require_images(images: Tensor, channels: int, sides: tuple[int, int]) -> None:
    """Raise ShapeError unless images have this many channels and these sides."""
    if tuple(images.shape[1:]) != (channels, *sides):
        raise ShapeError(
            f"images are {tuple(images.shape[1:])} (channels, height, width), where the model takes "
            f"{(channels, *sides)}; resize or convert them in the dataset"
        )


def patches_of(hidden: Tensor, size: int) -> Tensor:
    """Which patches of so many pixels a side have a hidden pixel: (batch, rows, columns) bool.

    Raises:
        CorruptionError: The sides of the mask are no multiple of the patch.
    """
    height, width = hidden.shape[-2:]
    if height % size or width % size:
        raise CorruptionError(f"a mask of {height} by {width} pixels cannot be cut into patches of {size}")
    return hidden[:, 0].unflatten(2, (-1, size)).unflatten(1, (-1, size)).any(4).any(2)


def pixels_of(patches: Tensor, size: int) -> Tensor:
    """The pixels of hidden patches, (batch, rows, columns) bool: (batch, 1, height, width)."""
    return patches.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None]


def random_patches(shape: Sequence[int], counts: Tensor, draw: Draw, device: torch.device) -> Tensor:
    """So many patches of each image at random: (batch, rows, columns) bool.

    Args:
        shape: (batch, rows, columns).
        counts: (batch,) or a single number of patches.
        draw: Where they come from.
        device: Where they lie.
    """
    ranks = draw.uniform("mask", (shape[0], shape[1] * shape[2]), device).argsort(1).argsort(1)
    return (ranks < counts.to(device).reshape(-1, 1)).reshape(shape[0], shape[1], shape[2])


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over everything but the batch: (batch,)."""
    weights = weights.to(values.dtype).expand_as(values)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def _below(names: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        found = [name for name in names if name == path or name.startswith(f"{path}.")]
        if not found:
            raise EncoderError(f"the model has no parameters under the path {path!r}; {_parts_beside(names, path)}")
        yield from found


def _parts_beside(names: Sequence[str], path: str) -> str:
    """What there is where a path leaves the model: at its outermost, or in the last part that exists."""
    within = path
    while within and not any(name.startswith(f"{within}.") for name in names):
        within = within.rpartition(".")[0]
    prefix = f"{within}." if within else ""
    parts = sorted({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})
    return f"{f'the parts of {within}' if within else 'its outermost parts'} are {', '.join(parts)}"


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _generator(seed: int, *labels: str | int) -> torch.Generator:
    text = "\x1f".join(str(part) for part in (seed, *labels))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)
