"""What decides the numbers of a training, as text, and files that keep its state; the training itself is in `fit`."""

import ast
import dis
import functools
import hashlib
import os
import re
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PACKAGE = Path(__file__).parent
TOUCHED = set[Path]()  # checkpoints that this process has written, or gone on from
STATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}  # of a module: no settings


class Identity:
    """Texts that are equal for what gives equal numbers; notes which modules of ts_helpers it meets.

    Of an object its class and attributes count, of a function its code, defaults, closure and the globals it names. Of
    libraries only names count, of ts_helpers the source (see `sources`), of ts_helpers.book nothing.
    """

    def __init__(self) -> None:
        self.modules = {"ts_helpers.fit"}  # what trains counts, whatever is trained

    def of(self, value: Any, within: tuple[int, ...] = ()) -> str:
        """Return the text of a value, which is within others of these ids."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if isinstance(value, Tensor):
            once = tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())  # an expanded one, once
            raw = value.detach()[once].cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(raw.data).hexdigest()}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()}"
        if id(value) in within:  # it holds itself
            return f"up {within[::-1].index(id(value))}"
        kind, held = type(value).__name__, list[Any]()
        match value:
            case Mapping():
                held = list(value.items())
            case list() | tuple():
                held = list(value)
            case set() | frozenset():
                held = sorted(self.of(each, within) for each in value)
            case nn.Module():
                held = [self.network(value), *value.parameters(), *value.buffers()]
            case torch.Generator():
                held = [value.get_state()]
            case types.CodeType():
                held = [value.co_code, value.co_names, value.co_freevars, value.co_argcount, *value.co_consts]
            case types.FunctionType():
                held = [value.__defaults__, value.__kwdefaults__, *(c.cell_contents for c in value.__closure__ or ())]
                if self._foreign(value.__module__):
                    kind = f"{value.__module__}.{value.__qualname__}"
                else:
                    around = {name: value.__globals__.get(name) for name in sorted(_named(value.__code__))}
                    held += [value.__code__, around]
            case types.ModuleType():
                kind = f"module {value.__name__} {self._foreign(value.__name__)}"
            case type() if self._foreign(value.__module__):
                kind = f"{value.__module__}.{value.__qualname__}"
            case type():
                held = [*value.__bases__, {k: v for k, v in vars(value).items() if k != "__firstlineno__"}]
            case functools.partial() | types.MethodType() | property() | staticmethod() | classmethod():
                held = [getattr(value, k, None) for k in ("func", "args", "keywords", "__func__", "__self__", "fget")]
            case _ if hasattr(value, "__dict__") and not f"{type(value).__module__}.".startswith("ts_helpers.book."):
                held = [type(value), vars(value)]
            case _:
                kind = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
        return f"{kind}({', '.join(self.of(each, (*within, id(value))) for each in held)})"

    def network(self, network: nn.Module) -> dict[str, str]:
        """Return the texts of all that a network is besides the values of its parameters and buffers, by their path."""
        found: dict[str, str] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            here: dict[str, Any] = {"class": parametrize.type_before_parametrizations(module)}
            for name, value in vars(module).items():
                if name not in STATE:  # the keys of hooks count all that were ever made
                    here[name] = list(value.values()) if name.endswith("hooks") and value else value
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                here[name] = None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)
            found |= {f"{path}.{name}".lstrip("."): self.of(value) for name, value in here.items()}
        return found

    def sources(self) -> str:
        """Return a digest of each module met, and of what these import of ts_helpers."""
        todo, done = sorted(self.modules), {}
        while todo:
            name = todo.pop()
            path = PACKAGE.joinpath(*name.split(".")[1:])
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if name in done or not _helper(name) or not file.is_file():
                continue
            done[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Import):
                    todo += [each.name for each in node.names]
                elif isinstance(node, ast.ImportFrom):
                    todo += [str(node.module), *(f"{node.module}.{each.name}" for each in node.names)]
        return repr(sorted(done.items()))

    def _foreign(self, name: str | None) -> bool:
        """Return whether a module is of ts_helpers, where it is noted, or of a library: its code is not looked into."""
        if _helper(name):
            self.modules.add(str(name))
        top = str(name).partition(".")[0]
        folders = Path(getattr(sys.modules.get(top), "__file__", None) or "").parts
        return top != "__main__" and (top in {"ts_helpers", *sys.stdlib_module_names} or "site-packages" in folders)


def _named(code: types.CodeType) -> set[str]:
    """Return the globals that code names, and code within it."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return own.union(*(_named(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _helper(name: str | None) -> bool:
    return f"{name}.".startswith("ts_helpers.") and not f"{name}.".startswith("ts_helpers.book.")


def write(file: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.stem}.{os.getpid()}.pt")
    try:
        torch.save(state | {"of": file.stem}, part)
        with suppress(FileNotFoundError):  # another run of the same training has just come to its end
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    TOUCHED.add(file)


def read(file: Path, device: torch.device) -> dict[str, Any] | None:
    """Return what a checkpoint holds, or None where there is none; one that is damaged or foreign is set aside."""
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        if state["of"] != file.stem or "measured" not in state:
            raise ValueError(f"it is that of {state['of']}")
        TOUCHED.add(file)
        return state
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception as error:  # anything, by what is in the file
        aside = file.with_suffix(".damaged")
        os.replace(file, aside)
        print(f"{file}: no checkpoint of this training ({error}), now {aside.name}; it begins anew", file=sys.stderr)
        return None
