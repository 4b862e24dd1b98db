"""Image-to-image models of a job: task, corruption, trained models, untrained ones."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from expunge.audit.feature_networks import FeatureNetwork
from expunge.cli.job import Job
from expunge.cli.loading import load_function
from expunge.cli.models import load_model, load_weights, untrained
from expunge.cli.settings import checked_call, nearest
from expunge.cli.sources import Source
from expunge.cli.task_sections import ImageToImageSection
from expunge.corruptions import CentreCrop, Corruption, HalfImage, MaskUnion, PatchAligned, RandomMask, Uncrop
from expunge.errors import JobError, MissingNeedError, SourceError
from expunge.image_models import (
    ImageModel,
    InpaintingDiffusion,
    MaskedAutoencoder,
    MaskedTokenModel,
    MaskedTokens,
    masked_autoencoder,
)
from expunge.pretrained import without_bars
from expunge.tasks import ImageToImage

_FAMILIES: Mapping[str, Callable[..., ImageModel]] = {
    "masked-autoencoder": MaskedAutoencoder,
    "masked-tokens": MaskedTokens,
    "inpainting-diffusion": InpaintingDiffusion,
}
_SIMPLE: Mapping[str, Callable[..., Corruption]] = {
    "centre-crop": CentreCrop,
    "uncrop": Uncrop,
    "half-image": HalfImage,
    "random-mask": RandomMask,
}
_COMPOSED = ("union", "patch-aligned")


def image_task(job: Job, train: Source) -> ImageToImage:
    """The task of a job on images.

    Raises:
        JobError: A setting is wrong.
    """
    section = cast(ImageToImageSection, job.task)
    left_out = {"kind", "family", "family_settings", "corruption", "seed", "training", "pictures"}
    settings = section.model_dump(exclude_none=True, exclude=left_out)
    if section.names is None and train.names is not None:
        settings["names"] = train.names
    family = checked_call(_FAMILIES[section.family], section.family_settings, "task.family_settings")
    training = None if section.training is None else corruption_of(section.training, "task.training")
    corruption = corruption_of(section.corruption, "task.corruption")
    made = partial(ImageToImage, family, corruption, section.seed, training)
    return checked_call(made, settings, "task")


def corruption_of(settings: Mapping[str, Any], key: str) -> Corruption:
    """A corruption as a job gives it: `kind` and its settings; `union` has `parts`, `patch-aligned` a `part`.

    Raises:
        JobError: There is no such kind or setting.
    """
    rest = {name: value for name, value in settings.items() if name != "kind"}
    kind = str(settings.get("kind"))
    if kind in _SIMPLE:
        return checked_call(_SIMPLE[kind], rest, key)
    if kind == "union":
        parts = rest.pop("parts", None)
        _require_no_more(rest, key, "parts")
        if not isinstance(parts, list) or not parts:
            raise JobError(f"{key}.parts: give a list of corruptions")
        numbered = enumerate(cast("list[Any]", parts))
        return MaskUnion(tuple(_part(each, f"{key}.parts.{place}") for place, each in numbered))
    if kind == "patch-aligned":
        part = _part(rest.pop("part", None), f"{key}.part")
        return checked_call(partial(PatchAligned, part), rest, key)
    raise JobError(f"{key}.kind: give one of {', '.join((*_SIMPLE, *_COMPOSED))}{nearest(kind, _SIMPLE)}")


def image_model(job: Job) -> nn.Module:
    """The trained model of a job on images; nothing but safetensors is read.

    Raises:
        SourceError: It cannot be loaded.
    """
    if job.model.hf is None:
        return load_model(job)
    match cast(ImageToImageSection, job.task).family:
        case "masked-autoencoder":
            return _masked_autoencoder(job).eval()
        case "inpainting-diffusion":
            return _diffusers(job, "UNet2DModel").eval()
        case "masked-tokens":
            model = untrained_image_model(job)()
            load_weights(model, job.path(cast(Path, job.model.weights)))
            return model.eval()


def untrained_image_model(job: Job) -> Callable[[], nn.Module]:
    """What retraining starts from: the same architecture, freshly initialised; a tokenizer keeps its weights.

    Raises:
        SourceError: It cannot be loaded.
    """
    if job.model.hf is None:
        return untrained(job)
    match cast(ImageToImageSection, job.task).family:
        case "masked-autoencoder":
            return partial(_fresh_autoencoder, _masked_autoencoder(job).config.to_dict())
        case "inpainting-diffusion":
            return partial(_fresh_diffusers, "UNet2DModel", _configuration(_diffusers(job, "UNet2DModel")))
        case "masked-tokens":
            tokenizer = _diffusers(job, "VQModel")
            weights, options = dict(tokenizer.state_dict()), job.model.options or {}
            return partial(_fresh_tokens, _configuration(tokenizer), weights, options)


def feature_network(job: Job) -> FeatureNetwork | None:
    """The network that the audit's measures of features rest on, if the job names one.

    Raises:
        SourceError: The function fails, or returns something else.
    """
    reference = job.audit.network if job.audit is not None else None
    if reference is None:
        return None
    found = load_function(reference, job.base, "audit.network")()
    if not isinstance(found, FeatureNetwork):
        raise SourceError(f"audit.network: {reference} returned a {type(found).__name__}, not a FeatureNetwork")
    return found


def _part(value: object, key: str) -> Corruption:
    if not isinstance(value, Mapping):
        raise JobError(f"{key}: give a corruption, as in {{kind: centre-crop, share: 0.5}}")
    return corruption_of(cast("Mapping[str, Any]", value), key)


def _require_no_more(rest: Mapping[str, Any], key: str, known: str) -> None:
    if rest:
        raise JobError(f"{key}.{next(iter(rest))}: unknown key; known are kind, {known}")


def _masked_autoencoder(job: Job) -> Any:
    with without_bars():
        load = cast(Any, ViTMAEForPreTraining).from_pretrained
        model, report = _loaded(job, partial(load, output_loading_info=True))
    _require_whole(job, cast("set[str]", report["missing_keys"]))
    return model


def _diffusers(job: Job, kind: str) -> nn.Module:
    model, report = _loaded(
        job, partial(_class(kind).from_pretrained, output_loading_info=True, low_cpu_mem_usage=False)
    )
    _require_whole(job, set(cast("list[str]", report["missing_keys"])))
    return cast(nn.Module, model)


def _loaded(job: Job, load: Callable[..., Any]) -> Any:
    name = job.model.hf or ""
    try:
        # safetensors only: a pickled checkpoint could run code
        return load(str(job.path(name)) if job.path(name).exists() else name, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise SourceError(
            f"model.hf: {name} cannot be loaded ({reason}); name a folder that save_pretrained wrote as safetensors, "
            "or a model of the hub of the family that the task names, which needs the network"
        ) from error


def _require_whole(job: Job, missing: set[str]) -> None:
    if missing:
        raise SourceError(
            f"model.hf: {job.model.hf} lacks {len(missing)} tensors such as {min(missing)}; name a checkpoint of the "
            "family that the task names"
        )


def _class(kind: str) -> Any:
    try:
        from diffusers.models.autoencoders.vq_model import VQModel
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError as error:
        raise MissingNeedError(
            "this family needs diffusers: install it with `pip install 'expunge[images]'`"
        ) from error
    return {"VQModel": VQModel, "UNet2DModel": UNet2DModel}[kind]


def _configuration(model: nn.Module) -> dict[str, Any]:
    """What the model is made of, without the folder that it came from."""
    found = dict(cast(Any, model).config)
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _fresh_autoencoder(configuration: dict[str, Any]) -> nn.Module:
    return masked_autoencoder(ViTMAEConfig(**configuration))


def _fresh_diffusers(kind: str, configuration: dict[str, Any]) -> nn.Module:
    return cast(nn.Module, _class(kind)(**configuration))


def _fresh_tokens(
    configuration: dict[str, Any], weights: dict[str, Tensor], options: dict[str, Any]
) -> MaskedTokenModel:
    tokenizer = _fresh_diffusers("VQModel", configuration)
    tokenizer.load_state_dict(weights)
    return checked_call(partial(MaskedTokenModel, tokenizer), options, "model.options")
