"""Image-to-image models: a part of an image is hidden, and the model restores it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.corruptions import Corruption
from expunge.data import INPUT_NAMES, LABEL_NAMES, Example, FieldKey, MapDataset, column, field_key
from expunge.errors import CorruptionError, DataError, LabelError, ShapeError
from expunge.image_models import Draw, ImageModel
from expunge.image_models.base import masked_mean
from expunge.settings import require_positive, require_whole
from expunge.tasks._inputs import as_tensor, require_finite_floats, stack_inputs
from expunge.tasks.base import Task

ImageBatch = dict[str, Tensor]
"""`images`: (batch, channels, height, width) floats in [0, 1]; `positions`: (batch,) int64, a number that stands for
each image's content; `labels`: (batch,) int64, where examples have them."""

VISIBLE = -1.0
"""What outputs hold at pixels that were not hidden."""

_FLATTEST = 1e-3  # mean square: an image whose hidden part is nearly one colour has nothing to be explained
_LOUDEST = 1e-6  # mean square error below which a reconstruction counts as perfect


@dataclass(frozen=True)
class ImageToImage(Task):
    """A model that restores what is hidden of an image: masked autoencoder, masked tokens, or diffusion.

    An example is a tuple or mapping that holds an image, (channels, height, width) in [0, 1] or a PIL image, and
    perhaps a whole-number label, of a class or a person, which names its group.

    While a model is trained, what is hidden is drawn anew at each step, as its family or `training` says. In evaluation
    mode each image has one mask of `corruption`, and one set of random numbers, which follow from `seed` and from its
    pixels alone: not from the order of the data, the batch, or the model.

    Args:
        family: What kind of model it is, as in `MaskedAutoencoder()`.
        corruption: What is hidden where models are measured.
        seed: Of masks and random numbers in evaluation mode.
        training: What is hidden while models are trained; by default what the family hides.
        image: Field of an example that holds the image; by default the first of a tuple, or the usual names.
        label: Field that holds the label; by default the second of a tuple, or the usual names, if there is one.
        names: Names of the labels for reports; their numbers by default.
        decoder_steps: Steps that `refit_head` trains a fresh decoder for.
        decoder_learning_rate: Of Adam in `refit_head`.
        decoder_batch_size: Images a step in `refit_head`.
    """

    family: ImageModel
    corruption: Corruption
    seed: int = 0
    training: Corruption | None = None
    image: FieldKey | None = None
    label: FieldKey | None = None
    names: tuple[str, ...] | None = None
    decoder_steps: int = 200
    decoder_learning_rate: float = 1e-3
    decoder_batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "seed", least=0)
        require_whole(self, "decoder_steps", "decoder_batch_size")
        require_positive(self, "decoder_learning_rate")

    def collate(self, examples: Sequence[Example]) -> ImageBatch:
        """Stack images and labels; refuse images that differ in size or lie outside [0, 1]."""
        image, label = self._keys(examples[0])
        try:
            images = stack_inputs([as_tensor(example[image]) for example in examples])
            labels = None if label is None else np.asarray([_plain(example[label]) for example in examples])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"an example lacks an image {image!r} or a whole-number label {label!r}") from error
        return self._checked(images, labels)

    def stack(self, columns: Example) -> ImageBatch:
        """A batch of columns that are tensors already."""
        image, label = self._keys(columns)
        labels = None if label is None else np.asarray(columns[label]).reshape(-1)
        return self._checked(torch.as_tensor(columns[image]), labels)

    def labels_of(self, dataset: MapDataset) -> Tensor | None:
        """Label of every example, (examples,), or None where examples have none.

        Raises:
            LabelError: A label is no whole number of 0 or more, or has no name where there are names.
        """
        key = self._keys(dataset[0])[1] if len(dataset) else None
        if key is None:
            return None
        return self._known(column(dataset, key))

    def fixed(self, model: nn.Module) -> Sequence[str]:
        """What the family computes, such as sinusoidal positions."""
        return self.family.fixed(model)

    def hidden(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """What is hidden of these images in evaluation mode, as the model can work with it.

        Returns:
            (batch, 1, height, width) bool, True where hidden.

        Raises:
            CorruptionError: All of an image is hidden, or nothing.
        """
        return self._masked(model, batch, self.corruption, self.seed)

    def reconstructions(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Images whose hidden part is what the model makes of it: (batch, channels, height, width)."""
        hidden = self.hidden(model, batch)
        drawn = self._reconstruct(model, batch, hidden)
        return torch.where(hidden, drawn, batch["images"].to(drawn.dtype))

    def outputs(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """What the model makes of the hidden part, and -1 elsewhere: (batch, channels, height, width)."""
        hidden = self.hidden(model, batch)
        return self._reconstruct(model, batch, hidden).masked_fill(~hidden, VISIBLE)

    def losses(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """The family's own loss on the hidden part: (batch,); masks are drawn anew while a model is in training mode.

        A squared error is not in nats: it is half of one, up to a factor and a constant, of a normal distribution.
        """
        if not model.training:
            return self._measured_losses(model, batch)
        return self._training_losses(model, batch)

    def training_mask(self, model: nn.Module, batch: ImageBatch, draw: Draw) -> Tensor:
        """What is hidden at a step of training: (batch, 1, height, width) bool."""
        self.family.require_usable(model, batch["images"])
        if self.training is None:
            return self.family.training_mask(model, batch["images"].shape, draw)
        seed = int(torch.randint(2**62, ())) if draw.seed is None else draw.seed
        return self._masked(model, batch, self.training, seed)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Jensen-Shannon divergence in nats, at most log 2, of hidden pixels read as probabilities of light: (batch,).

        It is averaged over pixels and channels. Where two values p and q are near each other it is about
        (p - q)² / (8 p (1 - p)).
        """
        p, q = (values.double().clamp(0, 1) for values in (outputs, reference))
        mean = (p + q) / 2
        each = _entropy(mean) - (_entropy(p) + _entropy(q)) / 2
        return masked_mean(each.clamp(min=0), outputs != VISIBLE)

    def signal(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Negative logarithm of the mean squared error on the hidden part: (batch,)."""
        error, _ = self._errors(model, batch)
        return -(error + _LOUDEST).log()

    def quality(self, model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        """Explained share of the hidden part, (batch,) in [0, 1].

        It is 1 - error / error of one colour, where the colour is the mean of the visible pixels and errors are mean
        squares: 1 is a perfect reconstruction, 0 one that is no better than filling in that colour.
        """
        error, flat = self._errors(model, batch)
        return {"explained share": (1 - error / flat.clamp(min=_FLATTEST)).clamp(0, 1)}

    def groups(self, batch: ImageBatch) -> list[str]:
        """The name of each image's label, or `all`."""
        if "labels" not in batch:
            return ["all"] * len(batch["images"])
        numbers = cast("list[int]", batch["labels"].tolist())
        return [str(number) if self.names is None else self.names[number] for number in numbers]

    def answers(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Images have no kinds of answer."""
        del outputs
        return {}

    def features(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """What the encoder holds of whole images: (batch, features)."""
        self.family.require_usable(model, batch["images"])
        return self.family.features(model, batch["images"]).float()

    def refit_head(self, model: nn.Module, batches: Iterable[ImageBatch]) -> None:
        """Train a fresh decoder on the encoder as it is: what an attacker does who distrusts the decoder.

        The decoder is initialised from `seed` and trained by Adam for `decoder_steps` on the family's own loss; the
        encoder keeps every bit, the statistics of its normalisation layers included.
        """
        images = [(batch["images"], batch["positions"]) for batch in batches]
        whole = {
            "images": torch.cat([pair[0] for pair in images]),
            "positions": torch.cat([pair[1] for pair in images]),
        }
        needed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        devices = [whole["images"].device] if whole["images"].is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(self.seed)
            self.family.train_decoder_only(model)
            self.family.reset_decoder(model)
            self._train_decoder(model, whole)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed.get(name, True))
        model.eval()

    def _train_decoder(self, model: nn.Module, whole: ImageBatch) -> None:
        decoder = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(decoder, lr=self.decoder_learning_rate)
        for _ in range(self.decoder_steps):
            rows = torch.randint(len(whole["images"]), (self.decoder_batch_size,)).to(whole["images"].device)
            batch = {name: values[rows] for name, values in whole.items()}
            self._training_losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _training_losses(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        return self.family.losses(model, batch["images"], self.training_mask(model, batch, Draw()), Draw())

    def _measured_losses(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        hidden = self.hidden(model, batch)
        return self.family.losses(model, batch["images"], hidden, self._draw(batch))

    def _reconstruct(self, model: nn.Module, batch: ImageBatch, hidden: Tensor) -> Tensor:
        return self.family.reconstruct(model, batch["images"], hidden, self._draw(batch))

    def _draw(self, batch: ImageBatch) -> Draw:
        return Draw(self.seed, batch["positions"])

    def _errors(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Mean squared error of the model on the hidden part, and of one colour: (batch,) each."""
        images, hidden = batch["images"], self.hidden(model, batch)
        drawn = self._reconstruct(model, batch, hidden).double()
        visible = ~hidden
        colour = (images.double() * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
        truth = images.double()
        return masked_mean((drawn - truth).square(), hidden), masked_mean((colour - truth).square(), hidden)

    def _masked(self, model: nn.Module, batch: ImageBatch, corruption: Corruption, seed: int) -> Tensor:
        images = batch["images"]
        self.family.require_usable(model, images)
        shape = cast("tuple[int, int, int, int]", tuple(images.shape))
        mask = corruption.mask(shape, seed, batch["positions"].cpu())
        if mask.shape != (shape[0], 1, *shape[2:]) or mask.dtype != torch.bool:
            raise CorruptionError(
                f"{type(corruption).__name__} gave a mask {tuple(mask.shape)} of {mask.dtype}, where "
                f"{(shape[0], 1, *shape[2:])} of torch.bool was expected"
            )
        hidden = self.family.aligned(model, mask.to(images.device))
        counts = hidden.flatten(1).sum(1)
        if bool((counts == 0).any()) or bool((counts == hidden[0].numel()).any()):
            whole = "nothing" if bool((counts == 0).any()) else "all"
            raise CorruptionError(
                f"{corruption!r} hides {whole} of an image of {shape[2]} by {shape[3]} pixels, as far as the model can "
                "tell (a patch counts as hidden where any pixel of it is); hide a part"
            )
        return hidden

    def _keys(self, example: Example) -> tuple[Any, Any]:
        by_position = isinstance(example, tuple | list)
        image = self.image if isinstance(self.image, int) == by_position else None
        label = self.label if isinstance(self.label, int) == by_position else None
        image = image if image is not None else field_key(example, INPUT_NAMES, 0, "image")
        if label is None and self._has_label(example):
            label = field_key(example, LABEL_NAMES, 1, "label")
        return image, label

    def _has_label(self, example: Example) -> bool:
        if isinstance(example, Mapping):
            return any(name in example for name in LABEL_NAMES)
        return isinstance(example, tuple | list) and len(cast("Sequence[Any]", example)) > 1

    def _checked(self, images: Tensor, labels: NDArray[Any] | None) -> ImageBatch:
        require_finite_floats(images)
        if images.ndim != 4:
            raise ShapeError(f"an image has {images.ndim - 1} axes, where (channels, height, width) was expected")
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise DataError(
                f"pixels run from {low:.3g} to {high:.3g}, and must lie in [0, 1]; scale them in the dataset, and "
                "leave the normalisation to the family of the model"
            )
        batch = {"images": images, "positions": positions_of(images)}
        return batch if labels is None else batch | {"labels": self._known(labels)}

    def _known(self, values: NDArray[Any]) -> Tensor:
        try:
            whole = values.astype(np.int64)
        except (TypeError, ValueError) as error:
            raise LabelError("the labels are not numbers; map classes or persons to 0, 1, ...") from error
        most = None if self.names is None else len(self.names)
        if not np.array_equal(whole, values) or whole.min() < 0 or (most is not None and whole.max() >= most):
            raise LabelError(
                f"labels run from {np.min(values)} to {np.max(values)}, and must be whole numbers of 0 or more"
                + ("" if most is None else f", below the {most} names")
            )
        return torch.from_numpy(whole).reshape(-1)


def positions_of(images: Tensor) -> Tensor:
    """A number for the content of each image, by which its mask is found again: (batch,) int64.

    Equal images have equal numbers, in whatever order or batch they come.
    """
    rows = images.detach().float().contiguous().cpu().numpy()
    return torch.tensor([xxhash.xxh3_64_intdigest(row.tobytes()) >> 1 for row in rows])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _entropy(share: Tensor) -> Tensor:
    """Entropy of a coin in nats."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
