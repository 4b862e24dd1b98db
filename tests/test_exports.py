"""The public surface is what `__all__` says, and nothing private leaks through it."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import expunge

PACKAGES = ["expunge"] + [f"expunge.{module.name}" for module in pkgutil.iter_modules(expunge.__path__) if module.ispkg]


def exported(package: ModuleType) -> list[str] | None:
    return getattr(package, "__all__", None)


def isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts `__all__`."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_what_there_is(name: str) -> None:
    package = importlib.import_module(name)
    names = exported(package)
    if names is None:
        pytest.skip("no public names of its own")
    assert len(names) == len(set(names))
    assert names == sorted(names, key=isort_order)
    for each in names:
        assert not each.startswith("_")
        assert getattr(package, each) is not None
    visible = {
        each for each, value in vars(package).items() if not each.startswith("_") and not isinstance(value, ModuleType)
    }
    assert visible == {each for each in names if not isinstance(getattr(package, each), ModuleType)}


def test_every_name_is_that_which_type_checkers_see() -> None:
    tree = ast.parse(Path(expunge.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: importlib.import_module(str(node.module)) for node in imports for alias in node.names}
    assert sorted(seen) == sorted(expunge.__all__)
    assert all(getattr(expunge, name) is getattr(home, name) for name, home in seen.items())
    assert set(expunge.__all__) <= set(dir(expunge))


@pytest.mark.parametrize(
    "code",
    {
        "after its package": "import expunge.audit.choosing; assert callable(expunge.audit)",
        "with its package": "from expunge.audit import References; from expunge import audit; assert callable(audit)",
        "a module": "import expunge; assert issubclass(expunge.errors.StateError, expunge.ExpungeError)",
        "a name that is not there": "import expunge; assert not hasattr(expunge, 'unlern')",
        "nothing heavy": "import sys, expunge; assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)",
        "by value": "import cloudpickle, expunge; assert cloudpickle.loads(cloudpickle.dumps(expunge)) is expunge",
    }.items(),
    ids=lambda case: case[0],
)
def test_names_are_imported_when_they_are_asked_for(code: tuple[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_objects_come_from_expunge_and_are_documented() -> None:
    for name in expunge.__all__:
        value = getattr(expunge, name)
        module = getattr(value, "__module__", value.__name__ if isinstance(value, ModuleType) else "")
        assert module.startswith("expunge."), name
        assert value.__doc__, name
        assert not any(part.startswith("_") for part in module.split(".")), f"{name} lives in a private module"


def test_every_error_reaches_the_user_through_one_base() -> None:
    assert "ExpungeError" in expunge.__all__


def test_importing_is_silent_and_reads_no_pickle() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error', category=FutureWarning); from expunge import *; "
        "assert 'expunge.cli' not in sys.modules, 'the command line is imported by nobody'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
