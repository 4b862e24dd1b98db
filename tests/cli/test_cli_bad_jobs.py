import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import tiny
from expunge.networks import mlp
from expunge.storage import write_tensors
from job_folder import NETWORK, JobFolder

TABLE = {"csv": "people.csv", "label": "diagnosis"}
MLP3 = {"network": "mlp", "options": {"features": 3, "classes": 4}, "weights": "mlp3.safetensors"}
BY_COLUMN = {"column": "patient_id", "values": ["p-secret"]}

# what is changed in a sound job, and what the complaint must say
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown section": ({"methods": {}}, ["methods: unknown key; did you mean 'method'?"]),
    "an unknown key": ({"forget": {"clases": [0]}}, ["forget.clases: unknown key; did you mean 'classes'?"]),
    "an unknown key of a source": (
        {"data": {"train": {"npz": "train.npz", "input": "x"}}},
        ["data.train.input: unknown key; did you mean 'inputs'?"],
    ),
    "no kind of source": ({"data": {"train": {"file": "train.npz"}}}, ["data.train: give", "exactly one of npz"]),
    "two kinds of source": ({"data": {"train": {"npz": "a", "csv": "b"}}}, ["data.train: give", "exactly one of"]),
    "a source that is no mapping": ({"data": {"train": "train.npz"}}, ["data.train: give a mapping"]),
    "no section": ({"task": None}, ["task: "]),
    "two complaints": ({"seed": -1, "task": {}}, ["seed: ", "task.classes: is missing"]),
    "two ways to forget": ({"forget": {"classes": [0], "indices": [1]}}, ["forget: give exactly one", "not classes"]),
    "nothing to forget": ({"forget": {}}, ["forget: give exactly one of classes", "none"]),
    "values without a column": ({"forget": {"classes": [0], "values": ["secret"]}}, ["forget: values belong"]),
    "a column without values": ({"forget": {"column": "a"}}, ["forget: give exactly one of values, values_file"]),
    "an empty list of classes": ({"forget": {"classes": []}}, ["the forget set is empty"]),
    "a class that is not there": ({"forget": {"classes": [9]}}, ["forget.classes: 9", "0 to 3"]),
    "an index out of range": ({"forget": {"indices": [500]}}, ["outside the dataset"]),
    "everything": ({"forget": {"classes": [0, 1, 2, 3]}}, ["the forget set is the whole dataset"]),
    "an unknown method": ({"method": {"name": "unsirr"}}, ["method.name: unknown; did you mean 'unsir'?"]),
    "a method without a name": ({"method": {}}, ["method.name: is missing"]),
    "an unknown setting": (
        {"method": {"name": "unsir", "noise_step": 3}},
        ["method.noise_step: unknown key; did you mean 'noise_steps'?"],
    ),
    "an unknown nested setting": (
        {"method": {"name": "fine-tune", "stages": [{"learning_rate": 0.1, "epoch": 2}]}},
        ["method.stages.0.epoch: unknown key"],
    ),
    "a setting of the wrong type": ({"method": {"name": "unsir", "noise_steps": "many"}}, ["method.noise_steps: "]),
    "a setting that the method refuses": (
        {"method": {"name": "neg-grad-plus", "retain_weight": 2}},
        ["method: retain_weight must lie between 0 and 1"],
    ),
    "an enumeration": ({"method": {"name": "unsir", "noise": "loud"}}, ["method.noise: ", "'learned'"]),
    "an unknown preset": ({"method": {"name": "unsir", "preset": "best"}}, ["method.preset: ", "it has: paper, tuned"]),
    "a method that lacks its need": ({"method": {"name": "retrain"}}, ["Retrain needs a recipe"]),
    "an audit without a recipe": ({"audit": {"oracles": 3}}, ["an audit retrains oracles and needs a recipe"]),
    "a single oracle": ({"audit": {"oracles": 1}, "recipe": {}}, ["audit.oracles: "]),
    "an unknown audit setting": (
        {"audit": {"margin": {}}, "recipe": {}},
        ["audit.margin: unknown key; did you mean 'margins'?"],
    ),
    "a recipe of two kinds": ({"recipe": {"python": "a:b", "epochs": 3}}, ["recipe: a python recipe brings its own"]),
    "an unknown algorithm": ({"recipe": {"algorithm": "adamax"}}, ["recipe.algorithm: ", "'adam'"]),
    "no file": ({"data": {"train": {"npz": "none.npz"}}}, ["data.train: there is no file", "none.npz"]),
    "a folder for a file": ({"data": {"train": {"npz": "."}}}, ["data.train: ", "is a folder"]),
    "an array that is not there": (
        {"data": {"train": {"npz": "train.npz", "inputs": "xs"}}},
        ["data.train.inputs: ", "no array 'xs'; did you mean", "'x'"],
    ),
    "a file of another format": ({"data": {"train": {"npz": "people.csv"}}}, ["data.train: ", "no readable npz file"]),
    "a truncated archive": ({"data": {"train": {"npz": "short.npz"}}}, ["data.train: ", "no readable npz file"]),
    "pickled objects": ({"data": {"train": {"npz": "objects.npz"}}}, ["data.train: ", "never unpickled"]),
    "NaN in an archive": ({"data": {"train": {"npz": "nan.npz"}}}, ["data.train.inputs: 1 of 8 examples hold NaN"]),
    "lengths that differ": ({"data": {"train": {"npz": "uneven.npz"}}}, ["data.train: inputs of shape (8, 12)"]),
    "labels that are fractions": ({"data": {"train": {"npz": "half.npz"}}}, ["data.train.labels: 8 of 8 labels"]),
    "labels out of range": (
        {"task": {"classes": 2}, "model": NETWORK | {"weights": "original.safetensors"}},
        ["class"],
    ),
    "a column that is not there": (
        {"data": {"train": TABLE | {"label": "diagnose"}}, "model": MLP3},
        ["data.train: ", "no column 'diagnose'; did you mean 'diagnosis'?"],
    ),
    "a feature that is text": (
        {"data": {"train": TABLE | {"features": ["f0", "patient_id"]}}, "model": MLP3},
        ["data.train.features: patient_id: not a numeric column"],
    ),
    "NaN in a table": (
        {"data": {"train": TABLE | {"csv": "gaps.csv"}}, "model": MLP3},
        ["data.train: 2 of 120 rows have features", "f1 (2)"],
    ),
    "labels missing in a table": (
        {"data": {"train": TABLE | {"csv": "unlabelled.csv"}}, "model": MLP3},
        ["data.train.label: 1 of 120 rows have no label"],
    ),
    "a numeric column of people": (
        {"data": {"train": TABLE | {"csv": "numbered.csv"}}, "forget": {"column": "patient_id", "values": [3]}},
        ["data.train: the column 'patient_id' chooses what to forget", "data.train.features"],
    ),
    "a person who is not there": (
        {"data": {"train": TABLE}, "forget": BY_COLUMN, "model": MLP3},
        ["1 of the 1 values asked for do not occur"],
    ),
    "a column of people that is not there": (
        {"data": {"train": TABLE}, "forget": BY_COLUMN | {"column": "patient"}, "model": MLP3},
        ["there is no column 'patient'; did you mean 'patient_id'?"],
    ),
    "a holdout of other classes": (
        {"data": {"train": TABLE, "holdout": TABLE | {"csv": "others.csv"}}, "model": MLP3},
        ["data.holdout.label: 120 of 120 labels are of classes that the training data lack"],
    ),
    "a table of nothing": (
        {"data": {"train": TABLE | {"csv": "empty.csv"}}},
        ["data.train: ", "cannot be read as csv"],
    ),
    "a module that is not there": (
        {"data": {"train": {"python": "no_such_module_of_data:data"}}},
        ["data.train.python: the module 'no_such_module_of_data' cannot be imported", "ModuleNotFoundError"],
    ),
    "a function that is not there": (
        {"data": {"train": {"python": "functions_with_faults:dat"}}},
        ["data.train.python: ", "has no function 'dat'; did you mean 'data'?"],
    ),
    "a function that returns something else": (
        {"data": {"train": {"python": "functions_with_faults:data"}}},
        ["data.train.python: ", "returned a int"],
    ),
    "something that is no reference": ({"data": {"train": {"python": "data.py"}}}, ["data.train.python: "]),
    "no dataset": ({"data": {"train": {"huggingface": "./none"}}}, ["data.train: ./none cannot be loaded"]),
    "no image folder": ({"data": {"train": {"images": "none"}}}, ["data.train: there is no folder"]),
    "field names for arrays": ({"task": {"classes": 4, "labels": "y"}}, ["task.labels: ", "no named fields"]),
    "names that do not fit": ({"task": {"classes": 4, "names": ["a"]}}, ["task: 1 names were given for 4 classes"]),
    "two models": (
        {"model": NETWORK | {"pretrained": "vit", "weights": "original.safetensors"}},
        ["model: give exactly one of network, pretrained, hf, build, not network and pretrained"],
    ),
    "a network without weights": ({"model": NETWORK}, ["model: a network needs weights"]),
    "an unknown network": ({"model": {"network": "resnet", "weights": "w"}}, ["model.network: ", "'resnet18'"]),
    "an unknown option": (
        {"model": NETWORK | {"options": {"features": 12, "classes": 4, "widht": 3}, "weights": "original.safetensors"}},
        ["model.options.widht: unknown key"],
    ),
    "an option that is missing": (
        {"model": {"network": "mlp", "weights": "original.safetensors"}},
        ["model.options.features: is missing"],
    ),
    "weights of another shape": (
        {"model": MLP3 | {"weights": "original.safetensors"}},
        ["model.weights: ", "does not fit the model"],
    ),
    "weights that are not there": ({"model": NETWORK | {"weights": "no.safetensors"}}, ["model.weights: there is no"]),
    "damaged weights": ({"model": NETWORK | {"weights": "short.safetensors"}}, ["model.weights: ", "damaged"]),
    "pickled weights": (
        {"model": NETWORK | {"weights": "model.pth"}},
        ["model.weights: model.pth is not a .safetensors file", "safetensors.torch.save_file"],
    ),
    "no pretrained model": ({"model": {"pretrained": "./none"}}, ["model.pretrained: ./none cannot be loaded"]),
    "a recipe that starts from the trained model": (
        {"model": {"build": "functions_with_faults:model"}, "recipe": {}},
        ["the recipe would start from what model.build returns"],
    ),
    "no output": ({"output": None}, ["output: is missing"]),
    "an unknown precision": ({"execution": {"precision": "fp8"}}, ["execution.precision: "]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_job_is_explained_and_writes_nothing(
    jobs: JobFolder, table: Callable[[], dict[str, Any]], name: str
) -> None:
    _materials(jobs, table())
    change, expected = CASES[name]
    jobs.job |= change
    if "MLP3" not in name and jobs.job["data"]["train"] == TABLE:
        jobs.job["forget"] = change.get("forget", {"classes": [0]})
    result = jobs.run()
    shown = " ".join(result.stderr.split())
    assert result.exit_code == 2, result.output
    for text in expected:
        assert text in shown
    assert "error: " in result.stderr
    assert "Traceback" not in result.output
    assert "secret" not in result.output
    assert jobs.outputs() == set()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model: [", "not valid YAML at line"),
        ("just words", "holds no mapping"),
        ("", "holds no mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_job(jobs: JobFolder, content: str | bytes, expected: str) -> None:
    file = jobs.folder / "odd.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = jobs.expunge("run", file)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_no_job_file(jobs: JobFolder) -> None:
    result = jobs.expunge("run", jobs.folder / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml cannot be read: No such file" in result.stderr


@pytest.mark.parametrize("change", ["seed", "=3", "seed.deep=3", "forget.classes.7=1", "method.name=[", "nothing=1"])
def test_a_bad_change_on_the_command_line(jobs: JobFolder, change: str) -> None:
    result = jobs.run("--set", change)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert jobs.outputs() == set()


def test_precision_no_needs_no_quotes(jobs: JobFolder) -> None:
    jobs.write()
    file = jobs.folder / "job.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "execution: {precision: no}\n", encoding="utf-8")
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["execution"]["precision"] is False
    assert jobs.expunge("run", file).exit_code == 0


def _materials(jobs: JobFolder, table: dict[str, Any]) -> None:
    """Files with one fault each."""
    folder, inputs = jobs.folder, tiny.vectors(2).tensors[0].numpy()
    labels = np.arange(8) % 4
    holed = inputs.copy()
    holed[3, 1] = np.nan
    np.savez(folder / "nan.npz", x=holed, y=labels)
    np.savez(folder / "uneven.npz", x=inputs, y=labels[:5])
    np.savez(folder / "half.npz", x=inputs, y=labels + 0.5)
    np.savez(folder / "objects.npz", x=np.array([{}, []], dtype=object), y=labels)
    for name in ("train.npz", "original.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name.replace("train", "short").replace("original", "short")).write_bytes(whole[: len(whole) // 2])
    shutil.copy(folder / "original.safetensors", folder / "model.pth")
    write_tensors(folder / "mlp3.safetensors", mlp(3, 4).state_dict())
    frame = pd.DataFrame(table)
    frame["patient_id"] = "p" + frame["patient_id"]
    frame.to_csv(folder / "people.csv", index=False)
    frame.assign(f1=frame["f1"].where(frame.index > 1)).to_csv(folder / "gaps.csv", index=False)
    frame.assign(diagnosis=frame["diagnosis"].where(frame.index > 0)).to_csv(folder / "unlabelled.csv", index=False)
    frame.assign(patient_id=frame.index % 12).to_csv(folder / "numbered.csv", index=False)
    frame.assign(diagnosis="unheard of").to_csv(folder / "others.csv", index=False)
    (folder / "empty.csv").write_text("", encoding="utf-8")
    (folder / "functions_with_faults.py").write_text("def data(): return 3\ndef model(): return 4\n", encoding="utf-8")
