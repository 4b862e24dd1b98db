"""Functions of the user's that fail: where is told, and what is not, for the message may quote forgotten data."""

from pathlib import Path
from typing import Any

import pytest

from job_folder import JobFolder

SECRET = "p-secret-17"
RAISE = f"    raise ValueError('cannot read the row of {SECRET}')"
UNSOUND = f"""
class Rows:
    def __len__(self): return 40
    def __getitem__(self, index):
        if index < BAD: return tiny.vectors(10)[index]
    {RAISE}
def data(): return Rows()
"""

# what the module holds, what of the job refers to it, and how the complaint starts
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a predicate": (
        f"def chosen(example):\n{RAISE}",
        {"forget": {"where": "MODULE:chosen"}},
        "forget.where: MODULE:chosen failed with ValueError at MODULE.py:2",
    ),
    "a data source": (
        f"def data():\n{RAISE}",
        {"data": {"train": {"python": "MODULE:data"}}},
        "data.train.python: MODULE:data failed with ValueError at MODULE.py:2",
    ),
    "a dataset at its first example": (
        f"import tiny\nBAD = 0{UNSOUND}",
        {"data": {"train": {"python": "MODULE:data"}}},
        "data.train.python: MODULE:data failed with ValueError at MODULE.py:7",
    ),
    "a dataset at a later example": (
        f"import tiny\nBAD = 30{UNSOUND}",
        {"data": {"train": {"python": "MODULE:data"}}},
        "unexpected ValueError at MODULE.py:7",
    ),
    "a dataset read in the background": (
        f"import tiny\nBAD = 30{UNSOUND}",
        {
            "data": {"train": {"python": "MODULE:data"}},
            "forget": {"indices": [0, 1]},
            "execution": {"workers": 1},
            "method": {"name": "fine-tune", "stages": [{"learning_rate": 0.001, "epochs": 1}]},
        },
        "unexpected ValueError at ",
    ),
    "a model": (
        f"def build():\n{RAISE}",
        {"model": {"build": "MODULE:build", "weights": "original.safetensors"}},
        "model.build: MODULE:build failed with ValueError at MODULE.py:2",
    ),
    "a recipe": (
        f"def recipe(dataset, seed):\n{RAISE}",
        {"recipe": {"python": "MODULE:recipe"}, "method": {"name": "retrain"}},
        "recipe.python: MODULE:recipe failed with ValueError at MODULE.py:2",
    ),
    "a recipe that fails in a library": (
        f"import numpy\ndef recipe(dataset, seed):\n    numpy.zeros(3).astype('{SECRET}')",
        {"recipe": {"python": "MODULE:recipe"}, "method": {"name": "retrain"}},
        "recipe.python: MODULE:recipe failed with TypeError at MODULE.py:3",
    ),
    "a module": (
        f"if True:\n{RAISE}",
        {"forget": {"where": "MODULE:chosen"}},
        "forget.where: the module 'MODULE' cannot be imported (ValueError at MODULE.py:2",
    ),
    "a module with a fault of syntax": (
        f"x = 3\nlist = ['{SECRET}' 3]",
        {"forget": {"where": "MODULE:chosen"}},
        "forget.where: the module 'MODULE' cannot be imported (SyntaxError at MODULE.py:2",
    ),
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_message_of_an_exception_is_not_repeated(jobs: JobFolder, name: str, as_json: bool) -> None:
    code, change, expected = CASES[name]
    module = _module(jobs.folder, code, as_json)
    jobs.job |= _naming(change, module)
    result = jobs.run(*["--json"] * as_json)
    assert result.exit_code == (1 if expected.startswith("unexpected") else 2)
    assert f"error: {expected.replace('MODULE', module)}" in " ".join(result.stderr.split())
    assert "its message is not shown because it may quote data" in result.stderr
    assert "Traceback" not in result.output
    assert SECRET not in result.output
    assert result.stdout == ""
    assert not (jobs.output / "record.json").exists()


def test_the_message_is_there_for_who_asks(jobs: JobFolder) -> None:
    module = _module(jobs.folder, CASES["a predicate"][0], "asked")
    jobs.job["forget"] = {"where": f"{module}:chosen"}
    jobs.write()
    result = jobs.expunge("--traceback", "run", jobs.folder / "job.yaml")
    assert result.exception is not None
    assert SECRET in str(result.exception.__cause__)


def test_an_error_of_the_librarys_own_in_the_users_code_is_shown(jobs: JobFolder) -> None:
    code = "from expunge.errors import DataError\ndef data(): raise DataError('convert it first')"
    jobs.job["data"] = {"train": {"python": f"{_module(jobs.folder, code, 'own')}:data"}}
    result = jobs.run()
    assert result.stderr.splitlines()[-1] == "error: convert it first"


def test_a_supervised_recipe_of_the_users_can_be_resumed(jobs: JobFolder) -> None:
    code = (
        "import tiny\nfrom functools import partial\nfrom expunge import Classification, Supervised\n"
        "from expunge.networks import mlp\n"
        "recipe = Supervised(partial(mlp, tiny.FEATURES, tiny.CLASSES, [16]), Classification(tiny.CLASSES), epochs=1)"
    )
    jobs.job["recipe"] = {"python": f"{_module(jobs.folder, code, 'supervised')}:recipe"}
    jobs.job["method"] = {"name": "retrain"}
    assert jobs.run().exit_code == 0
    assert [phase["name"] for phase in jobs.record()["phases"]] == ["train"]  # a phase is what keeps checkpoints


def _module(folder: Path, code: str, variant: object) -> str:
    # modules stay imported for the whole process, so that each needs a name of its own
    name = f"users_{abs(hash((code, variant)))}"
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return name


def _naming(change: Any, module: str) -> Any:
    if isinstance(change, dict):
        return {key: _naming(value, module) for key, value in change.items()}
    return change.replace("MODULE", module) if isinstance(change, str) else change
