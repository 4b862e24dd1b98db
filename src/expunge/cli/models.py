"""Models from where the job says they are, and untrained ones of the same shape for retraining."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from expunge import networks
from expunge.cli.job import Job
from expunge.cli.loading import existing, load_function
from expunge.cli.settings import checked_call
from expunge.errors import SavedModelError, SourceError
from expunge.storage import read_tensors

_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": networks.mlp,
    "small-cnn": networks.small_cnn,
    "all-cnn": networks.all_cnn,
    "resnet9": networks.ResNet9,
    "resnet18": networks.ResNet18,
}


def load_model(job: Job) -> nn.Module:
    """The trained model of a job.

    Raises:
        SourceError: It cannot be built, or its weights cannot be loaded.
    """
    section = job.model
    if section.pretrained is not None:
        return _pretrained(_name_or_path(job), section.pretrained)
    model = untrained(job)()
    if section.weights is not None:
        load_weights(model, job.path(section.weights))
    return model.eval()


def untrained(job: Job) -> Callable[[], nn.Module]:
    """A function that makes a network of the same shape, freshly initialised under torch's generator.

    Raises:
        SourceError: It cannot be found.
        JobError: The network's options are wrong.
    """
    section = job.model
    if section.build is not None:
        return partial(_built, load_function(section.build, job.base, "model.build"), section.build)
    if section.network is not None:
        return partial(_network, section.network, section.options or {})
    return partial(_from_configuration, _name_or_path(job))


def _network(network: str, options: dict[str, Any]) -> nn.Module:
    return checked_call(_NETWORKS[network], options, "model.options")


def _built(build: Callable[..., object], reference: str) -> nn.Module:
    model = build()
    if not isinstance(model, nn.Module):
        raise SourceError(f"model.build: {reference} returned a {type(model).__name__}, not a torch module")
    return model


def _from_configuration(name: str) -> nn.Module:
    configuration = cast(Any, AutoConfig).from_pretrained(name)
    return cast("nn.Module", cast(Any, AutoModelForImageClassification).from_config(configuration))


def _name_or_path(job: Job) -> str:
    name = job.model.pretrained or ""
    return str(job.path(name)) if job.path(name).exists() else name


def _pretrained(name: str, given: str) -> nn.Module:
    load = cast(Any, AutoModelForImageClassification).from_pretrained
    try:
        # safetensors only: a pickled checkpoint could run code
        model, report = load(name, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"model.pretrained: {given} cannot be loaded ({error}); name a folder that save_pretrained wrote as "
            "safetensors, or a model of the hub, which needs the network"
        ) from error
    missing = sorted(cast("set[str]", report["missing_keys"]))
    if missing:
        raise SourceError(
            f"model.pretrained: {given} is no trained classifier: it lacks {len(missing)} tensors such as "
            f"{missing[0]}; name a checkpoint that was fine-tuned for the task"
        )
    return cast("nn.Module", model).eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a safetensors file into a model.

    Raises:
        SourceError: It is no such file, is damaged, or does not fit the model.
    """
    if path.suffix != ".safetensors":
        raise SourceError(
            f"model.weights: {path.name} is not a .safetensors file, and other formats are not read because loading "
            "them can run code; convert a file that you trust once: "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        )
    existing(path, "model.weights")
    try:
        tensors, _ = read_tensors(path, foreign=True)
        model.load_state_dict(tensors)
    except SavedModelError as error:
        raise SourceError(f"model.weights: {error}") from error
    except RuntimeError as error:
        raise SourceError(
            f"model.weights: {path} does not fit the model ({error}); check model.options and the file"
        ) from error
