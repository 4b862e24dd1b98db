"""Networks that turn pictures into features, for measures that compare sets of pictures; each has a name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import ModelError, ShapeError, SourceError
from expunge.tasks import Classification

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue; Radford et al. 2021 (arXiv 2103.00020), as its public models are configured."""

_BATCH = 64


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose features are compared; figures of two networks must never be set beside each other.

    Attributes:
        name: What a report calls it.
        features: Pictures (batch, channels, height, width) in [0, 1] to features (batch, features).
        logits: Pictures to the logits of classes (batch, classes), for the inception score; None without classes.
    """

    name: str
    features: nn.Module
    logits: nn.Module | None = None

    def embed(self, pictures: Tensor, batch_size: int = _BATCH) -> Tensor:
        """Features in evaluation mode: (pictures, features) float64 on the CPU.

        Raises:
            ModelError: The features have another shape, or hold NaN or infinity.
        """
        return _applied(self.features, pictures, batch_size, f"features of {self.name}")

    def classify(self, pictures: Tensor, batch_size: int = _BATCH) -> Tensor:
        """Logits in evaluation mode: (pictures, classes) float64 on the CPU.

        Raises:
            ModelError: The network has no classes, or the logits have another shape, or hold NaN or infinity.
        """
        if self.logits is None:
            raise ModelError(f"{self.name} has no classes; use a classifier, as classifier_network makes of one")
        return _applied(self.logits, pictures, batch_size, f"logits of {self.name}")


def classifier_network(model: nn.Module, task: Classification, name: str) -> FeatureNetwork:
    """A classifier trained on the data: what its head sees, and what it says.

    Its classes are those of the data, so figures tell of what matters there; but they depend on how it was trained, so
    it must not be a model whose unlearning is measured.

    Args:
        model: It is not changed.
        task: What the model is for.
        name: What a report calls it, such as `ResNet-9 trained on CIFAR-10, 93 % right`.
    """
    return FeatureNetwork(name, _HeadSees(model, task), _Says(model, task))


def clip_network(
    name: str | Path,
    *,
    mean: tuple[float, float, float] = CLIP_MEAN,
    deviation: tuple[float, float, float] = CLIP_DEVIATION,
) -> FeatureNetwork:
    """The projected image embedding of a CLIP model.

    Pictures are resized to the model's size with a bicubic filter, whatever their shape, and grey ones repeated.

    Args:
        name: Of the model on the Hugging Face hub, or a folder; only safetensors are read.
        mean: Of each channel, which is taken off.
        deviation: Of each channel, which is divided by.

    Raises:
        SourceError: It cannot be loaded, or is no CLIP model.
    """
    from transformers import CLIPModel  # slow to import

    try:
        model: Any = cast(Any, CLIPModel).from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"no CLIP model can be loaded from {name} ({error}); check the name or path, and the network"
        ) from error
    return FeatureNetwork(f"CLIP {Path(name).name if Path(name).exists() else name}", _Clip(model, mean, deviation))


class _HeadSees(nn.Module):
    def __init__(self, model: nn.Module, task: Classification) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, pictures: Tensor) -> Tensor:
        return self.task.features(self.model, {"inputs": pictures})


class _Says(nn.Module):
    def __init__(self, model: nn.Module, task: Classification) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, pictures: Tensor) -> Tensor:
        return self.task.outputs(self.model, {"inputs": pictures})


class _Clip(nn.Module):
    def __init__(self, model: Any, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.model, self.side = model, int(model.config.vision_config.image_size)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1] not in (1, 3):
            raise ShapeError(f"CLIP reads 1 or 3 channels, not {pictures.shape[1]}")
        coloured = pictures.expand(-1, 3, -1, -1)
        sized = F.interpolate(coloured, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        scaled = (sized.clamp(0, 1) - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)
        return self.model.get_image_features(pixel_values=scaled).pooler_output


def _applied(network: nn.Module, pictures: Tensor, batch_size: int, what: str) -> Tensor:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            pieces = [network(batch.to(device)).double().cpu() for batch in pictures.float().split(batch_size)]
    finally:
        network.train(was_training)
    found = torch.cat(pieces)
    if found.ndim != 2 or len(found) != len(pictures):
        raise ModelError(f"the {what} have shape {tuple(found.shape)} for {len(pictures)} pictures; one row each")
    if not bool(torch.isfinite(found).all()):
        raise ModelError(f"the {what} hold NaN or infinity; load a sound network")
    return found.clone()
