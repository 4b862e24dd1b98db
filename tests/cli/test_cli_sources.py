from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

import tiny
from expunge.cli.job_file import load_job
from expunge.cli.problems import prepare
from expunge.data import column
from expunge.networks import mlp, small_cnn
from expunge.problem import Problem
from expunge.storage import write_tensors
from job_folder import JobFolder

Columns = Callable[[], dict[str, Any]]


def problem_of(jobs: JobFolder) -> Problem:
    jobs.write()
    return prepare(load_job(jobs.folder / "job.yaml")).problem


def image_job(jobs: JobFolder, train: dict[str, Any], channels: int = 1) -> None:
    write_tensors(jobs.folder / "cnn.safetensors", small_cnn(channels, 4, 4).state_dict())
    options = {"channels": channels, "classes": 4, "width": 4}
    jobs.job["model"] = {"network": "small-cnn", "options": options, "weights": "cnn.safetensors"}
    jobs.job["data"] = {"train": train}


def table_job(jobs: JobFolder, train: dict[str, Any]) -> None:
    write_tensors(jobs.folder / "mlp.safetensors", mlp(3, 4, [8]).state_dict())
    options = {"features": 3, "classes": 4, "hidden": [8]}
    jobs.job["model"] = {"network": "mlp", "options": options, "weights": "mlp.safetensors"}
    jobs.job["data"] = {"train": {"label": "diagnosis"} | train}
    jobs.job["forget"] = {"column": "patient_id", "values": ["003", "007"]}
    jobs.job["method"] = {"name": "neg-grad-plus", "epochs": 1}


@pytest.mark.parametrize("layout", ["no channel axis", "channels last", "channels first"])
def test_npz_images_are_scaled_and_channels_come_first(jobs: JobFolder, layout: str) -> None:
    pixels = np.arange(16 * 8 * 8, dtype=np.uint16).reshape(16, 8, 8).astype(np.uint8)
    arrays = {"no channel axis": pixels, "channels last": pixels[..., None], "channels first": pixels[:, None]}
    np.savez(jobs.folder / "images.npz", pictures=arrays[layout], kinds=np.arange(16) % 4)
    source = {"npz": "images.npz", "inputs": "pictures", "labels": "kinds", "scale": 255}
    image_job(jobs, source | ({"channels_last": True} if layout == "channels last" else {}))
    problem = problem_of(jobs)
    assert isinstance(problem.retain, torch.utils.data.Subset)
    inputs = problem.retain.dataset.tensors[0]
    assert torch.equal(inputs, torch.as_tensor(pixels).float()[:, None] / 255)
    jobs.job["method"] = {"name": "fine-tune", "stages": [{"learning_rate": 0.001, "steps": 1}]}
    assert jobs.run().exit_code == 0


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_all_rows_of_a_patient_are_found_in_a_table(jobs: JobFolder, table: Columns, kind: str) -> None:
    frame = pd.DataFrame(table())
    getattr(frame, f"to_{kind}")(jobs.folder / f"people.{kind}", index=False)
    table_job(jobs, {kind: f"people.{kind}", "features": ["f0", "f1", "f2"]})
    problem = problem_of(jobs)
    expected = frame["patient_id"].isin(["003", "007"])
    assert problem.forget is not None
    assert len(problem.forget) == int(expected.sum())
    stacked = torch.stack([problem.forget[index][0] for index in range(len(problem.forget))])
    assert torch.allclose(stacked, torch.tensor(frame.loc[expected, ["f0", "f1", "f2"]].to_numpy()).float())
    # in the order of the words: frail, ill, lost, well
    assert problem.task.names == ("frail", "ill", "lost", "well")
    assert problem.task.labels_of(problem.forget).tolist() == [
        problem.task.names.index(word) for word in frame.loc[expected, "diagnosis"]
    ]
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert "003" not in result.output


def test_features_are_all_numeric_columns_but_the_label(jobs: JobFolder, table: Columns) -> None:
    frame = pd.DataFrame(table()).assign(patient_id=lambda data: "p" + data["patient_id"])
    frame.to_csv(jobs.folder / "people.csv", index=False)
    table_job(jobs, {"csv": "people.csv"})
    (jobs.folder / "withdrawn.txt").write_text("p003\n\np007\n", encoding="utf-8")
    jobs.job["forget"] = {"column": "patient_id", "values_file": "withdrawn.txt"}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert "3 columns: f0, f1, f2" in result.stderr
    assert "frail = 0, ill = 1" in result.stderr


def test_a_holdout_table_has_the_training_datas_class_numbers(jobs: JobFolder, table: Columns) -> None:
    frame = pd.DataFrame(table()).assign(patient_id=lambda data: "p" + data["patient_id"])
    frame.to_csv(jobs.folder / "people.csv", index=False)
    frame[frame["diagnosis"] == "well"].to_csv(jobs.folder / "well.csv", index=False)
    table_job(jobs, {"csv": "people.csv"})
    jobs.job["forget"]["values"] = ["p003"]
    jobs.job["data"]["holdout"] = {"csv": "well.csv", "label": "diagnosis"}
    problem = problem_of(jobs)
    assert problem.holdout is not None
    assert set(problem.task.labels_of(problem.holdout).tolist()) == {3}


def test_an_image_folder(jobs: JobFolder) -> None:
    save_pictures(jobs.folder / "train", {"cat": 3, "cow": 2, "dog": 4, "emu": 2})
    save_pictures(jobs.folder / "holdout", {"cow": 1, "emu": 2})
    image_job(jobs, {"images": "train"}, channels=3)
    jobs.job["data"]["holdout"] = {"images": "holdout"}
    jobs.job["forget"] = {"classes": [2]}
    problem = problem_of(jobs)
    assert problem.task.names == ("cat", "cow", "dog", "emu")
    assert problem.forget is not None
    assert len(problem.forget) == 4
    # the two classes that the holdout has keep the numbers of the training data
    assert column(problem.holdout, "label").tolist() == [1, 3, 3]
    jobs.job["method"] = {"name": "neg-grad-plus", "epochs": 1}
    result = jobs.run()
    assert result.exit_code == 0, result.output


def test_splits_of_an_image_folder_share_their_classes(jobs: JobFolder) -> None:
    save_pictures(jobs.folder / "animals" / "train", {"cat": 3, "cow": 2, "dog": 4, "emu": 2})
    save_pictures(jobs.folder / "animals" / "val", {"cow": 1, "emu": 2})
    (jobs.folder / "animals" / "train" / "cat" / "notes.txt").write_text("no picture", encoding="utf-8")
    image_job(jobs, {"images": "animals"}, channels=3)
    jobs.job["data"]["holdout"] = {"images": "animals", "split": "validation"}
    jobs.job["forget"] = {"classes": [2]}
    problem = problem_of(jobs)
    assert problem.forget is not None
    assert problem.retain is not None
    assert (len(problem.forget), len(problem.retain)) == (4, 7)
    assert column(problem.holdout, "label").tolist() == [1, 3, 3]
    jobs.job["data"]["holdout"]["split"] = "test"
    assert "data.holdout.split: " in jobs.run().stderr


def test_nested_classes_keep_their_whole_name(jobs: JobFolder) -> None:
    save_pictures(jobs.folder / "places", {"a/field": 2, "h/house/indoor": 1, "h/house/outdoor": 3, "p/pub/indoor": 2})
    image_job(jobs, {"images": "places"}, channels=3)
    jobs.job["forget"] = {"classes": [1]}
    problem = problem_of(jobs)
    assert problem.task.names == ("a/field", "h/house/indoor", "h/house/outdoor", "p/pub/indoor")
    assert problem.forget is not None
    assert len(problem.forget) == 1


def test_damaged_images_are_listed_before_anything_runs(jobs: JobFolder) -> None:
    save_pictures(jobs.folder / "train", {"cat": 3, "cow": 2, "dog": 4, "emu": 2})
    whole = (jobs.folder / "train" / "dog" / "1.png").read_bytes()
    (jobs.folder / "train" / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    (jobs.folder / "train" / "emu" / "0.png").write_text("no picture", encoding="utf-8")
    image_job(jobs, {"images": "train"}, channels=3)
    result = jobs.run()
    assert result.exit_code == 2
    assert "2 of 11 images cannot be read: dog/1.png (" in result.stderr
    assert "emu/0.png (no format that Pillow reads)" in " ".join(result.stderr.split())
    assert not jobs.output.exists()


def test_a_class_may_be_called_like_a_split(jobs: JobFolder) -> None:
    save_pictures(jobs.folder / "vehicles", {"bus": 1, "car": 2, "train": 3, "tram": 1})
    image_job(jobs, {"images": "vehicles"}, channels=3)
    assert problem_of(jobs).task.names == ("bus", "car", "train", "tram")


@pytest.mark.parametrize("kind", ["images", "huggingface", "csv", "parquet"])
def test_reading_leaves_no_copy_and_no_name_in_a_cache(
    jobs: JobFolder, table: Columns, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = jobs.folder / "cache"
    cache.mkdir()
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(hf.config, name, str(cache))
    if kind in {"images", "huggingface"}:
        save_pictures(jobs.folder / "train", {"cat": 3, "cow": 2, "dog": 4, "emu": 2})
        image_job(jobs, {kind: "train"}, channels=3)
        jobs.job["method"] = {"name": "neg-grad-plus", "epochs": 1}
    else:
        getattr(pd.DataFrame(table()), f"to_{kind}")(jobs.folder / f"people.{kind}", index=False)
        table_job(jobs, {kind: f"people.{kind}", "features": ["f0", "f1", "f2"]})
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert list(cache.rglob("*")) == []


@pytest.mark.parametrize("form", ["dataset", "dataset dict"])
def test_a_dataset_saved_to_disk(jobs: JobFolder, form: str) -> None:
    inputs, labels = tiny.vectors(10).tensors
    people = [f"p{index % 5}" for index in range(len(labels))]
    data = hf.Dataset.from_dict({"x": inputs.tolist(), "label": labels.tolist(), "person": people})
    saved = hf.DatasetDict({"all": data}) if form == "dataset dict" else data
    saved.save_to_disk(str(jobs.folder / "saved"))
    jobs.job["data"] = {"train": {"huggingface": "saved", "split": "all" if form == "dataset dict" else "train"}}
    jobs.job["forget"] = {"column": "person", "values": ["p1"]}
    jobs.job["method"] = {"name": "fine-tune", "stages": [{"learning_rate": 0.001, "steps": 1}]}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert jobs.record()["data"]["forget"]["examples"] == 8


def test_a_pretrained_classifier(jobs: JobFolder) -> None:
    configuration = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_labels=4,
    )  # fmt: skip
    ViTForImageClassification(configuration).save_pretrained(jobs.folder / "vit")
    jobs.save_npz("pictures.npz", tiny.images(6))
    jobs.job |= {
        "model": {"pretrained": "vit"},
        "data": {"train": {"npz": "pictures.npz"}},
        "recipe": {"epochs": 1},
        "method": {"name": "retrain"},
    }
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert jobs.record()["phases"][0]["name"] == "train"


def test_functions_of_the_users_own(jobs: JobFolder) -> None:
    (jobs.folder / "users_own_functions.py").write_text(
        "import tiny, torch\n"
        "from expunge.networks import mlp\n"
        "def data(): return tiny.as_mappings(tiny.vectors(8))\n"
        "def build(): return mlp(tiny.FEATURES, tiny.CLASSES, [16])\n"
        "def chosen(example): return int(example['y']) == 1 and float(example['x'][0]) > 0\n"
        "def recipe(dataset, seed):\n"
        "    torch.manual_seed(seed)\n"
        "    return build()\n",
        encoding="utf-8",
    )
    jobs.job |= {
        "model": {"build": "users_own_functions:build", "weights": "original.safetensors"},
        "data": {"train": {"python": "users_own_functions:data"}},
        "task": {"classes": tiny.CLASSES, "inputs": "x", "labels": "y"},
        "forget": {"where": "users_own_functions:chosen"},
        "recipe": {"python": "users_own_functions:recipe"},
        "method": {"name": "retrain"},
    }
    result = jobs.run()
    assert result.exit_code == 0, result.output
    inputs, labels = tiny.vectors(8).tensors
    expected = int(((labels == 1) & (inputs[:, 0] > 0)).sum())
    assert 0 < expected < 8
    assert jobs.record()["data"]["forget"]["examples"] == expected


@pytest.mark.parametrize("form", ["list", "text", "npy"])
def test_forgetting_by_position(jobs: JobFolder, form: str) -> None:
    chosen = [5, 3, 77]
    (jobs.folder / "rows.txt").write_text("5\n3\n77\n", encoding="utf-8")
    np.save(jobs.folder / "rows.npy", np.array(chosen))
    jobs.job["forget"] = {
        "list": {"indices": chosen},
        "text": {"indices_file": "rows.txt"},
        "npy": {"indices_file": "rows.npy"},
    }[form]
    forget = problem_of(jobs).forget
    assert isinstance(forget, torch.utils.data.Subset)
    assert list(forget.indices) == sorted(chosen)


def save_pictures(folder: Path, counts: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


def test_a_surrogate_is_read_like_the_holdout(jobs: JobFolder) -> None:
    rows = pd.DataFrame({"age": [1.0, 2, 3, 4], "dose": [4.0, 3, 2, 1], "weight": [1.0, 1, 2, 2]})
    for name, kinds in (("train", ["a", "b", "c", "d"]), ("stand_in", ["d", "d", "a", "b"])):
        rows.assign(diagnosis=kinds, patient_id=["003", "007", "1", "2"]).to_csv(
            jobs.folder / f"{name}.csv", index=False
        )
    table_job(jobs, {"csv": "train.csv", "features": ["age", "dose", "weight"]})
    jobs.job["data"]["surrogate"] = {"csv": "stand_in.csv", "label": "diagnosis"}
    found = problem_of(jobs).surrogate
    assert found is not None
    assert column(found, 1).tolist() == [3, 3, 0, 1], "classes are numbered as in the training data"
    assert torch.equal(found[0][0], torch.tensor([1.0, 4.0, 1.0]))
