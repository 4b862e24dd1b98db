"""What the command says before it computes: it says so at once, and knows the choices without importing them."""

import subprocess
import sys
import warnings
from importlib.metadata import version
from typing import get_args

import pytest
from typer.testing import CliRunner

from expunge import Level
from expunge.audit import choosing
from expunge.cli import app
from expunge.cli.methods import Installed
from expunge.cli.processes import is_main_process
from expunge.errors import ExpungeWarning
from expunge.states.influence import Influence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--version"], f"expunge {version('expunge')}"), (["--help"], "influence"), (["audit", "--help"], "--shadows")],
    ids=["version", "help", "help of a command"],
)
def test_the_command_starts_without_torch(arguments: list[str], said: str) -> None:
    heavy = ("torch", "transformers", "datasets", "scipy", "pandas", "sklearn", "matplotlib", "numpy")
    code = (
        "import sys\n"
        "from expunge.cli.app import app\n"
        f"status = app({arguments!r}, standalone_mode=False)\n"
        f"print(status, sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_choices_of_the_command_are_those_of_the_library() -> None:
    assert get_args(app.LevelName) == tuple(level.value for level in Level)
    assert get_args(app.ExecutorName) == get_args(choosing.ExecutorName)
    assert get_args(app.InfluenceName) == tuple(kind.value for kind in Influence)


@pytest.mark.parametrize(
    ("variables", "main"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "2"}, False), ({"RANK": "-1", "PMI_RANK": "3"}, False)],
)
def test_the_main_process_is_told_as_accelerate_tells_it(
    variables: dict[str, str], main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils.environment import get_int_from_env

    names = ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is main is (get_int_from_env(names, 0) == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["influence", "job.yaml", "--kind", "foo"], "'foo' is not one of 'gradient', 'activation'"),
        (["audit", "run", "--level", "slow"], "'slow' is not one of 'quick', 'standard'"),
        (["demo", "chess"], "'chess' is not one of 'digits', 'hospital'"),
        (["audit", "run", "--oracles", "1"], "--oracles"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "job.yaml", "--no-such"], "No such option: --no-such"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--no-such"], "No such option: --no-such"),
    ],
)
def test_what_a_command_cannot_be_started_with_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app.app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.endswith("--help`")


def test_without_arguments_the_help_is_shown() -> None:
    assert "influence" in CliRunner().invoke(app.app, []).output


def test_warnings_of_the_library_are_notes_said_once_and_those_of_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def warns() -> list[Installed]:
        for _ in range(2):
            warnings.warn("the [bold] result\nis so so", ExpungeWarning, stacklevel=2)
        warnings.warn("somebody else's", UserWarning, stacklevel=2)
        return []

    monkeypatch.setattr("expunge.cli.methods.installed_methods", warns)
    with pytest.warns(UserWarning, match="somebody else's") as left:
        result = CliRunner().invoke(app.app, ["methods"])
    assert result.exit_code == 0, result.output
    assert len(left) == 1
    assert result.stderr.splitlines() == ["Note: The [bold] result is so so"]
