"""Names of recipes and models by what they are, so that a trained model is found again only where nothing differs.

A recipe is known by its code. Functions count by bytecode, constants, defaults, closure, and the globals they name,
recursively; what an installed package defines counts by the package's version, and Expunge itself by its source. Where
two recipes cannot be told apart with certainty, they have no name.
"""

import builtins
import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from expunge.errors import ReferenceModelError
from expunge.storage import update_digest

_READERS = {
    "open", "eval", "exec", "compile", "globals", "__import__", "import_module", "input", "read", "read_text",
    "read_bytes", "load", "loads", "loadtxt", "genfromtxt", "fromfile", "memmap", "safe_open", "load_file",
    "load_dataset", "load_from_disk", "load_state_dict_from_url", "from_pretrained", "read_csv", "read_parquet",
    "environ", "getenv", "urlopen", "time", "time_ns", "now", "perf_counter", "monotonic", "urandom", "SystemRandom",
    "default_rng",
}  # fmt: skip
"""Names in a function which mean that its result may follow from a file, a clock, or the machine."""
_NOT_STRUCTURE = {"_parameters", "_buffers", "_modules", "training", "_is_accelerate_prepared"}
_LOOKUPS = {"getattr", "vars", "dir"}
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made at run time, as Python code makes them
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


def recipe_name(recipe: Any, device: str) -> str:
    """What a recipe is, as a digest.

    Args:
        recipe: A function, or a dataclass such as `Supervised`.
        device: What it computes on.

    Raises:
        ReferenceModelError: It cannot be told with certainty.
    """
    try:
        return _Identity().feed(recipe).feed(_environment()).feed(device).digest()
    except RecursionError as error:
        raise ReferenceModelError("it refers to too much to be compared") from error


def structure_name(model: nn.Module) -> str:
    """What a model is besides its weights, as a digest: classes, their settings, and buffers that are not saved.

    Raises:
        ReferenceModelError: It cannot be told with certainty.
    """
    identity, saved = _Identity(), model.state_dict()
    try:
        for name, module in model.named_modules():
            own = {key: value for key, value in vars(module).items() if key not in _NOT_STRUCTURE}
            identity.feed(name).feed(type(module)).feed(own)
        identity.feed({name: buffer for name, buffer in model.named_buffers() if name not in saved})
    except RecursionError as error:
        raise ReferenceModelError("it refers to too much to be compared") from error
    return identity.digest()


class _Identity:
    """A running digest of Python values."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no number in `_seen` passes to another object

    def digest(self) -> str:
        """The digest of what was fed, in hexadecimal."""
        return self._state.hexdigest()

    def feed(self, value: Any) -> Self:
        """Feed a value and all it refers to.

        Raises:
            ReferenceModelError: Something in it is of a kind whose identity cannot be told.
        """
        if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str | bytes):
            if isinstance(value, Enum):
                return self._put("enumeration").feed(type(value).__qualname__).feed(value.name)
            return self._put(type(value).__name__)._put(repr(value))
        if isinstance(value, tuple | frozenset):  # of equal ones the compiler may make one or several
            return self._feed_object(value)
        if id(value) in self._seen:
            return self._put(f"again {self._seen[id(value)]}")
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return self._feed_object(value)

    def _feed_object(self, value: Any) -> Self:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return self._put(f"array {value.dtype.str} {value.shape}")._put(value.tobytes())
        if isinstance(value, torch.dtype | torch.device | np.dtype):
            return self._put(repr(cast(Any, value)))
        if isinstance(value, tuple | list):
            return self._sequence(cast("list[Any]", value))
        if isinstance(value, Mapping):
            entries = cast("Mapping[Any, Any]", value)
            return self._put(f"mapping {len(entries)}")._sequence([part for pair in entries.items() for part in pair])
        if isinstance(value, set | frozenset):
            members = cast("frozenset[Any]", value)
            return self._put("set")._sequence(sorted(_Identity().feed(member).digest() for member in members))
        return self._callable(value) if callable(value) or _is_descriptor(value) else self._instance(value)

    def _callable(self, value: Any) -> Self:
        match value:
            case functools.partial():
                partial = cast("functools.partial[Any]", value)
                return self._put("partial").feed(partial.func).feed(partial.args).feed(partial.keywords)
            case types.MethodType():
                return self._put("method").feed(value.__func__).feed(value.__self__)
            case staticmethod() | classmethod():
                return self._put(type(value).__name__).feed(cast(Any, value).__func__)
            case property():
                return self._put("property")._sequence([value.fget, value.fset, value.fdel])
            case functools.cached_property():
                return self._put("cached property").feed(cast(Any, value).func)
            case types.FunctionType():
                return self._function(value)
            case types.BuiltinFunctionType() if isinstance(value.__self__, types.ModuleType | None):
                return self._named(value)
            case type():
                return self._class(cast("type[Any]", value))
            case functools._lru_cache_wrapper():  # pyright: ignore[reportPrivateUsage]
                return self._put("cached").feed(cast(Any, value).__wrapped__)
            case _:
                return self._instance(value)

    def _function(self, function: types.FunctionType) -> Self:
        if function.__name__ in _READERS:
            raise ReferenceModelError(f"{function.__qualname__} may read a file, a clock or the machine's state")
        if _package_of(function) is not None:
            return self._named(function)._sequence([function.__defaults__, function.__kwdefaults__])._cells(function)
        self._put("function").feed(function.__module__).feed(function.__qualname__)
        self._sequence([function.__defaults__, function.__kwdefaults__, dict(vars(function))])._cells(function)
        return self._code(function.__code__, function)

    def _cells(self, function: types.FunctionType) -> Self:
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                self._put("empty cell")
            else:
                self.feed(content)
        return self

    def _code(self, code: types.CodeType, function: types.FunctionType) -> Self:
        suspects = _READERS.intersection(code.co_names)
        if suspects:
            raise ReferenceModelError(
                f"{function.__qualname__} uses {', '.join(sorted(suspects))}, whose result may follow from a file, a "
                "clock or the machine"
            )
        self._put(code.co_code)._put(str((code.co_names, code.co_freevars, code.co_cellvars, code.co_flags)))
        self._put(str((code.co_argcount, code.co_kwonlyargcount, code.co_varnames)))._put(code.co_exceptiontable)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, function)
            else:
                self.feed(constant)
        for operation in dis.get_instructions(code):
            if operation.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
                raise ReferenceModelError(f"{function.__qualname__} changes the global {operation.argval}")
            if operation.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
                self._global(str(operation.argval), function.__globals__, code)
            if operation.opname == "IMPORT_NAME":
                self._module(_imported(str(operation.argval), function), code)
        return self

    def _global(self, name: str, scope: dict[str, Any], code: types.CodeType) -> None:
        self._put(f"global {name}")
        if name not in scope:
            if not hasattr(builtins, name):
                self._put("absent")
        elif isinstance(scope[name], types.ModuleType):
            self._module(scope[name], code)
        else:
            self.feed(scope[name])

    def _module(self, module: types.ModuleType, code: types.CodeType) -> None:
        """A package by its version; of a user's module what the code names."""
        known = _package(module.__name__)
        self._put(f"module {module.__name__} {known}")
        if known is not None:
            return
        if _LOOKUPS.intersection(code.co_names):
            raise ReferenceModelError(f"{code.co_qualname} looks names up in {module.__name__} while it runs")
        for name in code.co_names:
            value = getattr(module, name, None)
            if isinstance(value, types.ModuleType):
                if value.__name__ != module.__name__:
                    self._module(value, code)
            elif name in vars(module):
                self._put(name).feed(value)

    def _class(self, kind: type[Any]) -> Self:
        if _package_of(kind) is not None:
            return self._named(kind)
        self._put("class").feed(kind.__module__).feed(kind.__qualname__)._sequence(list(kind.__bases__))
        for name, value in sorted(vars(kind).items()):
            said = callable(value) if name.startswith("__") else name != "_abc_impl"
            if said and not isinstance(value, _SLOTS):
                self._put(name).feed(value)
        return self

    def _instance(self, value: Any) -> Self:
        if isinstance(value, PreTrainedTokenizerFast):
            return self._tokenizer(value)
        kind = cast("type[Any]", type(value))
        made_in_python = all(one is object or one.__flags__ & _HEAP_TYPE for one in kind.__mro__)
        slotted = not isinstance(value, BaseModel) and any(getattr(one, "__slots__", ()) for one in kind.__mro__)
        if not made_in_python or slotted or not hasattr(value, "__dict__"):
            raise ReferenceModelError(f"it holds a {kind.__module__}.{kind.__qualname__}, which cannot be compared")
        return self._put("instance").feed(kind).feed(dict(vars(value)))

    def _tokenizer(self, value: PreTrainedTokenizerFast) -> Self:
        """What it does to text follows from its own description of itself, and from its special tokens."""
        self._put("tokenizer").feed(type(value))._put(value.backend_tokenizer.to_str())
        return self.feed(dict(value.special_tokens_map)).feed(value.model_max_length)

    def _named(self, value: Any) -> Self:
        module = cast(str, value.__module__ or "builtins")
        if value.__name__ in _READERS:
            raise ReferenceModelError(f"{value.__qualname__} may read a file, a clock or the machine's state")
        known = _package(module)
        if known is None:
            raise ReferenceModelError(f"{value.__qualname__} is compiled and of no known version")
        return self._put(f"{module} {value.__qualname__} {known}")

    def _tensor(self, value: Tensor) -> Self:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise ReferenceModelError("it holds a tensor that is sparse, quantised or without content")
        update_digest(self._state, value)
        return self

    def _sequence(self, values: Any) -> Self:
        self._put(f"sequence {len(values)} {isinstance(values, list)}")
        for value in values:
            self.feed(value)
        return self

    def _put(self, text: str | bytes) -> Self:
        update_digest(self._state, text.encode() if isinstance(text, str) else text)
        return self


@cache
def _environment() -> str:
    """What besides recipe, data and seed decides weights up to rounding: versions, and the source of this library."""
    state = hashlib.sha256(f"{sys.version_info[:3]} {torch.__version__} {np.__version__}".encode())
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in {"cli", "report"}:
            update_digest(state, path.relative_to(root).as_posix().encode())
            update_digest(state, path.read_bytes())
    return state.hexdigest()


def _is_descriptor(value: Any) -> bool:
    return isinstance(value, staticmethod | classmethod | property | functools.cached_property)


def _imported(name: str, function: Callable[..., Any]) -> types.ModuleType:
    found = sys.modules.get(name)
    if found is None:
        raise ReferenceModelError(f"{function.__qualname__} imports {name} while it runs")
    return found


@cache
def _package(module: str) -> str | None:
    """The version that a module's content follows from, or None where only its code tells."""
    top = module.partition(".")[0]
    if top == "expunge":
        return None if module.startswith("expunge.cli") else "source"
    if top == "builtins" or (top in sys.stdlib_module_names and top != "__main__"):
        return "python"
    file = getattr(sys.modules.get(top), "__file__", None)
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if file is None or not any(Path(file).is_relative_to(place) for place in places):
        return None
    found = [_version(name) for name in _distributions().get(top, ())]
    return " ".join(found) or None


def _package_of(value: types.FunctionType | type[Any]) -> str | None:
    """The same for the module that defines a function or a class."""
    module = cast(Any, value.__module__)
    if not isinstance(module, str):  # as of code that was run where nothing has a name
        raise ReferenceModelError(f"{value.__qualname__} names no module that it comes from")
    return _package(module)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution
