"""Real data for heads: rows that belong to people, from EXPUNGE_DATA_DIR.

Categories are those of the files' code books and ranges are round numbers, so nothing is fitted to single rows.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge import Classification, Execution, Supervised
from expunge.networks import ClippedFeatures, small_cnn

_NUMBERS = {
    "time_in_hospital": 14, "num_lab_procedures": 100, "num_procedures": 6, "num_medications": 50,
    "number_outpatient": 5, "number_emergency": 5, "number_inpatient": 5, "number_diagnoses": 10,
}  # fmt: skip
_CATEGORIES = (
    "race", "gender", "age", "admission_type_id", "admission_source_id", "A1Cresult", "max_glu_serum", "insulin",
    "metformin", "change", "diabetesMed",
)  # fmt: skip
_ADULT = (
    "age", "workclass", "weight", "education", "years", "marital", "occupation", "relationship", "race", "sex", "gain",
    "loss", "hours", "country", "income",
)  # fmt: skip
_BACKBONE_IMAGES = 6000
_SPREAD = 4.0  # one-hot columns give rows a norm of about so much, which the clip to 1 would flatten


@dataclass(frozen=True)
class People:
    """Rows in disjoint parts, no person in two of them.

    Attributes:
        train: What a head is trained on.
        person: Whose row it is: (rows,).
        spare: Rows of the same kind, for surrogates.
        test: Rows of the same kind.
        classes: Number of classes.
    """

    train: TensorDataset
    person: Tensor
    spare: TensorDataset
    test: TensorDataset
    classes: int

    @property
    def task(self) -> Classification:
        """What the head is for."""
        return Classification(self.classes)

    def build(self) -> nn.Module:
        """An untrained head on rows clipped to norm 1."""
        width = self.train.tensors[0].shape[1] + 1
        return nn.Sequential(ClippedFeatures(1.0), nn.Linear(width, self.classes, bias=False, dtype=torch.double))

    def part(self, rows: int, seed: int) -> "People":
        """Some of the training rows, drawn at random."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
        train = TensorDataset(*(tensor[chosen] for tensor in self.train.tensors))
        return People(train, self.person[chosen], self.spare, self.test, self.classes)


@cache
def readmission(rows: int) -> People:
    """UCI Diabetes 130-US hospitals: is a patient admitted again? A row an encounter, a person all of a patient's."""
    archive = zipfile.ZipFile(_file("diabetes_readmission.zip"))
    table = pd.read_csv(archive.open("dataset_diabetes/diabetic_data.csv"), low_memory=False)
    numbers = [table[name].clip(upper=top) / top for name, top in _NUMBERS.items()]
    features = pd.concat([*numbers, _dummies(table[list(_CATEGORIES)])], axis=1)
    return _parted(features, table["readmitted"] != "NO", table["patient_nbr"], rows)


@cache
def adult(rows: int) -> People:
    """UCI Adult: does a person earn more than 50,000 dollars? A row a person."""
    tables = [
        pd.read_csv(_file(f"adult.{name}"), header=None, names=list(_ADULT), skipinitialspace=True, skiprows=skipped)
        for name, skipped in (("data", 0), ("test", 1))
    ]
    table = pd.concat(tables, ignore_index=True)
    numbers = [table["age"] / 90, table["years"] / 16, table["hours"] / 99, np.log1p(table["gain"]) / 12,
               np.log1p(table["loss"]) / 12]  # fmt: skip
    words = ["workclass", "education", "marital", "occupation", "relationship", "race", "sex"]
    features = pd.concat([*numbers, _dummies(table[words])], axis=1)
    return _parted(features, table["income"].str.startswith(">50K"), pd.Series(range(len(table))), rows)


@cache
def mnist(rows: int) -> People:
    """Features of a small network trained on other MNIST digits; the head sees a row an image."""
    with np.load(_file("mnist.npz"), allow_pickle=False) as arrays:
        images = torch.from_numpy(np.concatenate([arrays["x_train"], arrays["x_test"]])).float()[:, None] / 255
        labels = torch.from_numpy(np.concatenate([arrays["y_train"], arrays["y_test"]])).long()
    images = nn.functional.avg_pool2d(images, 2)
    quiet = Execution(progress=False)
    recipe = Supervised(partial(small_cnn, 1, 10, width=8), Classification(10), epochs=3, execution=quiet)
    network = recipe(TensorDataset(images[:_BACKBONE_IMAGES], labels[:_BACKBONE_IMAGES]), 0)
    ends = [_BACKBONE_IMAGES, _BACKBONE_IMAGES + rows, _BACKBONE_IMAGES + 2 * rows, _BACKBONE_IMAGES + 3 * rows]
    with torch.no_grad():
        features = torch.cat([network[:-1](batch) for batch in images[: ends[-1]].split(1000)]).double()  # pyright: ignore
    features /= features[: ends[0]].norm(dim=1).mean()
    parts = [TensorDataset(features[low:high], labels[low:high]) for low, high in pairwise(ends)]
    return People(parts[0], torch.arange(rows), parts[1], parts[2], 10)


SETS: dict[str, Callable[[int], People]] = {"readmission": readmission, "Adult": adult, "MNIST features": mnist}


def shifted(data: TensorDataset, classes: int, distance: float, seed: int) -> TensorDataset:
    """A sample in which classes have other shares, so that the total variation distance to `data` is `distance`.

    The second half of the classes gives so much of its share to the first; within a class nothing changes.
    """
    labels = data.tensors[1]
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    low = torch.arange(classes) < classes // 2
    wanted = torch.where(low, share * (1 + distance / share[low].sum()), share * (1 - distance / share[~low].sum()))
    size = int(min(len(labels) * share / wanted.clamp(min=1e-9)).floor())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = [order[labels[order] == label][: round(size * float(wanted[label]))] for label in range(classes)]
    return TensorDataset(*(tensor[torch.cat(kept)] for tensor in data.tensors))


def _parted(features: pd.DataFrame, labels: pd.Series, person: pd.Series, rows: int) -> People:
    """Three parts of about `rows` rows, by person."""
    codes = torch.from_numpy(pd.factorize(person)[0].astype(np.int64))
    order = torch.randperm(int(codes.max()) + 1, generator=torch.Generator().manual_seed(0))
    place = order[codes]
    by_place = place.argsort(stable=True)
    inputs, targets = (
        torch.from_numpy(features.to_numpy(np.float64)) / _SPREAD,
        torch.from_numpy(labels.to_numpy(np.int64)),
    )
    bounds = [int(place[by_place[min(count, len(by_place) - 1)]]) for count in (0, rows, 2 * rows, 3 * rows)]
    parts = [torch.nonzero((place >= low) & (place < high)).flatten() for low, high in pairwise(bounds)]
    sets = [TensorDataset(inputs[part], targets[part]) for part in parts]
    return People(sets[0], codes[parts[0]], sets[1], sets[2], 2)


def _dummies(table: pd.DataFrame) -> Any:
    return pd.get_dummies(table.astype(str), dtype=float)


def _file(name: str) -> Path:
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / name).exists():
        raise SystemExit(f"set EXPUNGE_DATA_DIR to a folder that holds {name}")
    return Path(root) / name
