"""What a training depends on, as text: values, networks, functions and the helper modules behind them; no training."""

import ast
import dis
import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PACKAGE = Path(__file__).parent
PLAIN = (type(None), bool, int, float, complex, str, bytes)
# of a module: what is compared by itself, or says nothing of its numbers
STATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
# of a class: what Python adds to it
ADDED = {"__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"} | {
    "__static_attributes__",
    "__firstlineno__",
    "__annotate__",
    "__annotations_cache__",
    "__annotate_func__",
}


class Identity:
    """Makes texts that are the same for what gives the same numbers, and notes the helper modules that it meets.

    Attributes:
        modules: names of modules of ts_helpers whose functions and classes were met; those of the book are not.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self._within: list[int] = []  # ids of what is being described, for what holds itself

    def of(self, value: Any) -> str:
        """Return the text of a value: all that it holds, by value; of an object of no known kind what it shows."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return f"tensor{tuple(value.shape)} {value.dtype} {_bytes(value)}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"array{value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
        if isinstance(value, type) or not hasattr(value, "__array__"):
            if id(value) in self._within:
                return f"within {len(self._within) - self._within.index(id(value))}"
            self._within.append(id(value))
            try:
                return self._compound(value)
            finally:
                self._within.pop()
        return _shown(value)

    def network(self, network: nn.Module) -> dict[str, str]:
        """Return the texts of all that a network is besides its parameters and buffers, by the path of each."""
        found = {}
        for path, module in network.named_modules(remove_duplicate=False):
            stem = f"{path}." if path else ""
            found[f"{stem}class"] = self._class(parametrize.type_before_parametrizations(module))
            for name, value in vars(module).items():
                if name.endswith("hooks"):  # their keys count all hooks that were ever made
                    found[stem + name] = self.of(list(value.values()))
                elif name not in STATE and not name.startswith("_forward_hooks_") and "hooks_with" not in name:
                    found[stem + name] = self.of(value)
            for kind, some in ("parameter", module._parameters), ("buffer", module._buffers):
                for name, tensor in some.items():
                    like = "None" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device}"
                    found[stem + name] = f"{kind} {like}"
        return found

    def sources(self) -> str:
        """Return a digest of the modules met, and of what these import of ts_helpers."""
        todo, done = sorted(self.modules), {}
        while todo:
            name = todo.pop()
            file = _file(name)
            if name in done or file is None:
                continue
            text = file.read_bytes()
            done[name] = hashlib.sha256(text).hexdigest()
            todo += [found for found in _imports(ast.parse(text)) if _helper(found)]
        return repr(sorted(done.items()))

    def _compound(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return self._many("map", [part for item in value.items() for part in item])
        if isinstance(value, list | tuple):
            return self._many(type(value).__name__, value)
        if isinstance(value, set | frozenset):
            return f"set {sorted(map(self.of, value))}"
        if isinstance(value, nn.Module):
            return repr([self.network(value), self._many("state", [*value.parameters(), *value.buffers()])])
        if isinstance(value, types.ModuleType):
            self._met(value.__name__)
            return f"module {value.__name__}"
        if isinstance(value, functools.partial):
            return self._many("partial", [value.func, value.args, value.keywords])
        if isinstance(value, types.MethodType):
            return self._many("method", [value.__func__, value.__self__])
        if isinstance(value, property | staticmethod | classmethod):
            return self._many("property", [getattr(value, "fget", None) or getattr(value, "__func__", None)])
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, torch.Generator):
            return self.of(value.get_state())
        if hasattr(value, "__dict__") and not type(value).__module__.startswith("ts_helpers.book"):
            return self._many(self._class(type(value)), [vars(value)])
        return _shown(value)

    def _many(self, kind: str, values: Iterable[Any]) -> str:
        return f"{kind} {[self.of(value) for value in values]}"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        held = [function.__defaults__, function.__kwdefaults__, [_content(cell) for cell in function.__closure__ or ()]]
        if self._met(function.__module__) or _library(function.__module__):
            return self._many(name, held)
        return self._many("function", [*held, function.__code__, self._globals(function)])

    def _globals(self, function: types.FunctionType) -> dict[str, Any]:
        """Return what a function names of the plain values, functions, classes and modules around it."""
        kinds = (*PLAIN, Tensor, np.ndarray, list, tuple, set, frozenset, dict, type, types.SimpleNamespace)
        kinds += (types.FunctionType, types.ModuleType, functools.partial)
        there = {name: function.__globals__.get(name) for name in sorted(set(_named(function.__code__)))}
        return {name: value for name, value in there.items() if isinstance(value, kinds)}

    def _code(self, code: types.CodeType) -> str:
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_flags, code.co_argcount
        return self._many("code", [hashlib.sha256(code.co_code).hexdigest(), *names, *code.co_consts])

    def _class(self, cls: type) -> str:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if self._met(cls.__module__) or _library(cls.__module__):
            return name
        own = {key: value for key, value in vars(cls).items() if key not in ADDED}
        return self._many("class", [own, cls.__bases__])

    def _met(self, name: str | None) -> bool:
        """Note a module, and return whether it is one of ts_helpers."""
        if _helper(name):
            self.modules.add(str(name))
            return True
        return bool(name) and f"{name}.".startswith("ts_helpers.")


def difference(first: dict[str, str], other: dict[str, str]) -> str | None:
    """Return the path of what differs between two networks, if anything."""
    return next((path for path in {**first, **other} if first.get(path) != other.get(path)), None)


def _bytes(tensor: Tensor) -> str:
    tensor = tensor.detach()
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())  # what is expanded, once
    return hashlib.sha256(tensor[once].contiguous().cpu().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _named(code: types.CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _named(const)]
    return [
        str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    ] + inner


def _helper(name: str | None) -> bool:
    return f"{name}.".startswith("ts_helpers.") and not f"{name}.".startswith("ts_helpers.book.")


def _library(name: str | None) -> bool:
    top = str(name).partition(".")[0]
    parts = Path(getattr(sys.modules.get(top), "__file__", None) or "").parts
    return top in sys.stdlib_module_names - {"__main__"} or bool({"site-packages", "dist-packages"} & set(parts))


def _file(name: str) -> Path | None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return found
