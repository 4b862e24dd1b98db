"""Jobs on image-to-image models: the three families, corruptions, and where pictures come from."""

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import restoring
import tiny
from expunge import RandomEncoder, unlearn
from expunge.audit import Evidence
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.identity import recipe_name
from expunge.cli.image_models import corruption_of, image_model, untrained_image_model
from expunge.cli.job_file import load_job
from expunge.cli.problems import prepare
from expunge.cli.summary import _sharing
from expunge.corruptions import CentreCrop, MaskUnion, PatchAligned, RandomMask, Uncrop
from expunge.errors import JobError
from expunge.storage import write_tensors
from expunge.training import Run, over_batches
from job_folder import JobFolder

TASK: dict[str, Any] = {
    "kind": "image-to-image",
    "family": "masked-autoencoder",
    "corruption": {"kind": "half-image", "side": "right"},
    "decoder_steps": 5,
}
FAMILIES = ["masked-autoencoder", "masked-tokens", "inpainting-diffusion"]
TOKENS = {"side": 4, "width": 24, "encoder_layers": 2, "decoder_layers": 1, "heads": 2}


def training_pictures() -> TensorDataset:
    return restoring.pictures()


def other_pictures() -> TensorDataset:
    """Kinds of picture that the training data have not."""
    images, labels = restoring.pictures(20, seed=3).tensors
    return TensorDataset(images.flip(2), labels + 50)


def overlapping_pictures() -> TensorDataset:
    images, labels = other_pictures().tensors
    return TensorDataset(torch.cat([images, restoring.pictures().tensors[0][:3]]), torch.cat([labels, labels[:3]]))


def quarters() -> FeatureNetwork:
    class Means(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)

    return FeatureNetwork("means of quarters", Means())


def maps() -> FeatureNetwork:
    return FeatureNetwork("maps", nn.AdaptiveAvgPool2d(2))


@pytest.fixture
def job(jobs: JobFolder) -> JobFolder:
    """Forget a kind of picture with a masked autoencoder that lies in a folder."""
    cast(Any, restoring.recipe(epochs=2)(restoring.pictures(), 0)).save_pretrained(jobs.folder / "mae")
    source = {"python": "test_cli_images:training_pictures"}
    jobs.job = {
        "model": {"hf": "mae"},
        "data": {"train": source, "holdout": source},
        "task": dict(TASK),
        "forget": {"classes": [0]},
        "method": {"name": "latent-remap", "epochs": 1, "batch_size": 24},
        "execution": {"device": "cpu"},
    }
    return jobs


def test_a_job_forgets_audits_and_shows_pictures(job: JobFolder) -> None:
    job.job["recipe"] = {"epochs": 1, "batch_size": 24}
    job.job["audit"] = {
        "oracles": 2, "network": "test_cli_images:quarters", "bits": [], "neighbours": 0,
        "pictures": {"grid": "holdout"}, "relearning": {"steps": [0, 1], "forget_examples": 4, "retain_examples": 8},
    }  # fmt: skip
    result = job.run("--output", job.output)
    assert result.exit_code == 0, result.output
    found = Evidence.load(job.output)
    assert found.grid is not None
    assert found.embeddings is not None
    assert "evidence.json, report.html and model.safetensors may be shared" in " ".join(result.stdout.split())
    of_the_forgotten = found.model_copy(update={"grid": found.grid.model_copy(update={"shows": "forget"})})
    assert "evidence.json and report.html may not, for they hold pictures of the forget set" in _sharing(
        job.output, of_the_forgotten
    )
    assert found.restorations[0].unlearned.feature_network == "means of quarters"
    assert "<image" in (job.output / "report.html").read_text(encoding="utf-8")
    assert {curve.name for curve in found.curves} == {"relearning", "relearning, head refitted"}


def test_a_job_gives_a_surrogate(job: JobFolder) -> None:
    job.job["task"] |= {"names": ["stripes", "chessboard", "ramp"]}
    job.job["data"] |= {"surrogate": {"python": "test_cli_images:other_pictures"}}
    job.job["method"] |= {"held": "surrogate"}
    result = job.run("--output", job.output)
    assert result.exit_code == 0, result.output
    assert job.record()["data"]["surrogate"]["examples"] == 60
    again = job.run("--output", job.output, "--resume")
    assert again.exit_code == 0, again.output
    del job.job["data"]["surrogate"]
    assert "surrogate" in job.run("--output", job.output, "--resume").stderr


def test_a_surrogate_that_holds_pictures_to_be_forgotten_is_refused_with_their_number(job: JobFolder) -> None:
    job.job["data"] |= {"surrogate": {"python": "test_cli_images:overlapping_pictures"}}
    job.job["method"] |= {"held": "surrogate"}
    result = job.run("--output", job.output)
    assert result.exit_code == 2, result.output
    assert "3 of 24 pictures to be forgotten are also in the surrogate" in " ".join(result.stderr.split())
    assert job.outputs() == set()


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("task", {"corruption": "centre-crop"}, "task.corruption: must be a section with keys of its own"),
        ("task", {"family_settings": {"encoder": "vit"}}, "task.family_settings.encoder: must be a list"),
        ("task", {"family_settings": {"encoder": ["vit.layer"]}}, "the parts of vit are embeddings, layernorm, layers"),
        ("method", {"held": "surrogate"}, "(in a job: `data.surrogate`)"),
    ],
)
def test_what_is_wrong_in_a_job_is_named_as_the_job_names_it(
    job: JobFolder, section: str, changes: dict[str, Any], said: str
) -> None:
    job.job[section] |= changes
    result = job.run("--output", job.output)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("network", "said"),
    [("quarters", "needs more than 4 pictures of each set, and there are 4"), ("maps", "features of maps")],
)
def test_what_the_audit_cannot_measure_is_refused_before_anything_is_unlearned(
    job: JobFolder, network: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.cli.runs.unlearn", lambda *_, **__: pytest.fail("unlearned"))
    job.job["recipe"] = {"epochs": 1, "batch_size": 24}
    job.job["audit"] = {"oracles": 2, "network": f"test_cli_images:{network}", "pictures": {"count": 4}}
    result = job.run("--output", job.output)
    assert result.exit_code == 2, result.output
    assert "Unlearning with" not in result.output
    assert said in " ".join(result.stderr.split())
    assert job.outputs() == set()


def models(folder: Path, family: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model of a family in a folder, and the model section that names it."""
    torch.manual_seed(3)
    if family == "masked-autoencoder":
        model: Any = restoring.vit_mae()
        model.save_pretrained(folder / "model")
        return model, {"hf": "model"}
    if family == "inpainting-diffusion":
        model = restoring.unet()
        model.save_pretrained(folder / "model")
        return model, {"hf": "model"}
    model = restoring.masked_tokens()
    model.tokenizer.save_pretrained(folder / "model")
    write_tensors(folder / "tokens.safetensors", model.state_dict())
    return model, {"hf": "model", "options": TOKENS, "weights": "tokens.safetensors"}


def untrained_pictures_model() -> nn.Module:
    return restoring.vit_mae()


def test_a_second_audit_trains_no_oracle(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(job.folder / "cache"))
    write_tensors(job.folder / "mae.safetensors", restoring.vit_mae().state_dict())
    job.job |= {
        "model": {"build": "test_cli_images:untrained_pictures_model", "weights": "mae.safetensors"},
        "recipe": {"epochs": 1, "batch_size": 24},
        "audit": {
            "oracles": 2, "bits": [], "neighbours": 0, "executor": "in-process",
            "relearning": {"steps": [0, 1], "forget_examples": 4, "retain_examples": 8},
        },
    }  # fmt: skip
    first = job.run("--output", job.output, "--json")
    assert first.exit_code == 0, first.output
    again = job.expunge("audit", job.output, "--json")
    for result, trained in ((first, 2), (again, 0)):
        (fleet,) = json.loads(result.stdout)["trained"]
        assert (fleet["trained"], fleet["cached"]) == (trained, 2 - trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_every_family_have_a_name_that_stays(job: JobFolder, family: str) -> None:
    _, section = models(job.folder, family)
    job.job |= {"model": section, "task": {**TASK, "family": family}, "recipe": {"epochs": 1}}

    def name() -> str:
        job.write()
        return recipe_name(prepare(load_job(job.folder / "job.yaml")).problem.recipe, "cpu")

    once = name()
    assert name() == once
    job.job["recipe"] = {"epochs": 2}
    assert name() != once


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_loaded_from_its_folder_and_can_be_made_anew(job: JobFolder, family: str) -> None:
    model, section = models(job.folder, family)
    job.job |= {"model": section, "task": {**TASK, "family": family}}
    job.write()
    loaded_job = load_job(job.folder / "job.yaml")
    loaded = image_model(loaded_job)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    torch.manual_seed(4)
    fresh = untrained_image_model(loaded_job)()
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert not all(torch.equal(fresh.state_dict()[name], value) for name, value in model.state_dict().items())
    problem = prepare(loaded_job).problem
    run = Run(problem.task, 0, tiny.QUIET)
    assert problem.retain is not None
    assert bool(torch.cat(over_batches(run, fresh, problem.retain, problem.task.losses)).isfinite().all())


def test_a_job_reads_unlearned_weights_whose_head_was_parted(job: JobFolder) -> None:
    model, section = models(job.folder, "masked-tokens")
    recipe = restoring.recipe(restoring.FAMILIES["masked tokens"], epochs=1)
    problem = restoring.problem(model, restoring.pictures(), recipe.task)
    result = unlearn(problem, RandomEncoder(epochs=1, batch_size=24), execution=tiny.QUIET)
    result.save(job.folder / "forgotten")
    section["weights"] = "forgotten/model.safetensors"
    job.job |= {"model": section, "task": {**TASK, "family": "masked-tokens"}}
    job.write()
    loaded = image_model(load_job(job.folder / "job.yaml"))
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not torch.equal(loaded.state_dict()["embedding.weight"], model.state_dict()["embedding.weight"])


def test_the_tokenizer_of_masked_tokens_keeps_its_weights_where_a_model_is_made_anew(job: JobFolder) -> None:
    model, section = models(job.folder, "masked-tokens")
    job.job |= {"model": section, "task": {**TASK, "family": "masked-tokens"}}
    job.write()
    fresh = untrained_image_model(load_job(job.folder / "job.yaml"))()
    before = {name: value for name, value in model.state_dict().items() if name.startswith("tokenizer.")}
    assert before
    for name, value in before.items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_pictures_of_folders_are_fitted_and_found_by_person(job: JobFolder) -> None:
    for kind in ("cat", "dog"):
        for person in ("s1", "s2"):
            place = job.folder / "pictures" / kind / person
            place.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (20, 14), (number * 40, 90, 10)).save(place / f"{number}.png")
    job.job["data"] = {"train": {"images": "pictures", "levels": {"person": 1}}}
    job.job["task"] |= {"pictures": {"size": 8, "channels": 1}}
    job.job["forget"] = {"column": "person", "values": ["s1"]}
    job.write()
    problem = prepare(load_job(job.folder / "job.yaml")).problem
    assert problem.forget is not None
    assert len(problem.forget) == 6
    assert problem.forget[0]["image"].shape == (1, 8, 8)


def test_corruptions_are_made_of_parts() -> None:
    made = corruption_of(
        {"kind": "union", "parts": [{"kind": "centre-crop", "share": 0.25}, {"kind": "uncrop", "left": 0.1}]}, "c"
    )
    assert made == MaskUnion((CentreCrop(0.25), Uncrop(left=0.1)))
    aligned = corruption_of({"kind": "patch-aligned", "patch": 4, "part": {"kind": "random-mask", "patch": 2}}, "c")
    assert aligned == PatchAligned(RandomMask(2), 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "centre"}, "c.kind: give one of centre-crop"),
        ({}, "c.kind: give one of"),
        ({"kind": "centre-crop", "shre": 0.5}, "did you mean 'share'"),
        ({"kind": "centre-crop", "share": 2}, "share must lie between"),
        ({"kind": "union"}, "c.parts: give a list"),
        ({"kind": "union", "parts": [3]}, "c.parts.0: give a corruption"),
        ({"kind": "union", "parts": [{"kind": "x"}]}, "c.parts.0.kind"),
        ({"kind": "union", "parts": [{"kind": "half-image"}], "patch": 3}, "c.patch: unknown key"),
        ({"kind": "patch-aligned", "patch": 2}, "c.part: give a corruption"),
    ],
)
def test_wrong_corruptions_are_complained_about_by_key(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)):
        corruption_of(wrong, "c")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"network": "mlp", "weights": "x.safetensors"}}, "model.network belongs to a classifier"),
        ({"model": {"hf": "nowhere"}}, "model.hf: nowhere cannot be loaded"),
        ({"task": {**TASK, "family": "masked-tokens"}}, "needs model.options and model.weights"),
        ({"task": {**TASK, "family": "vae"}}, "task.family"),
        ({"task": {**TASK, "family_settings": {"means": [0]}}}, "did you mean 'mean'"),
        ({"task": {**TASK, "decoder_steps": 0}}, "decoder_steps"),
        ({"data": {"train": {"csv": "x.csv", "label": "y"}}}, "holds no pictures"),
        ({"model": {"hf": "mae", "options": {"side": 4}, "weights": "w.safetensors"}}, "brings its own weights"),
    ],
)
def test_wrong_jobs_are_refused_by_key(job: JobFolder, change: dict[str, Any], said: str) -> None:
    job.job |= change
    result = job.run("--output", job.output)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert job.outputs() == set()


def test_a_feature_network_is_for_images_alone(job: JobFolder) -> None:
    job.job |= {
        "task": {"classes": 3}, "model": {"build": "x:y"}, "recipe": {"python": "x:y"},
        "audit": {"network": "test_cli_images:quarters"},
    }  # fmt: skip
    assert "audit.network belongs to images" in job.run("--output", job.output).stderr
