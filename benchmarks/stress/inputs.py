"""Call what is public in the core, and in papers what takes a reader's numbers, with what it was not made for.

One or two arguments of a call that works are replaced: by other types, numbers at and beyond the ends of their range,
tensors of other shapes and types or without numbers (the meta device). The call must return what its signature says,
finite and as an oracle says, or raise a ValueError or TypeError that names an argument, within `SECONDS`. Each public
function has a line in `CALLS`: a new one cannot be forgotten. Not tried: sizes from a dozen to 2^31, work, no mistakes.
"""

import contextlib
import functools
import gzip
import importlib
import inspect
import io
import math
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import time
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import ts_helpers
from ts_helpers import cells, engine, progress, seeding, timescales
from ts_helpers.book.parameters import Parameter
from ts_helpers.book.run import Job, find
from ts_helpers.datasets import pixels, ring, sines, text
from ts_helpers.papers import matsuki2018
from ts_helpers.papers.tallec2018 import memory_tasks

SECONDS, MEMORY = 5, 8 * 2**30  # beyond what is mapped at the start
Cases = dict[str, tuple[Any, Callable[[Any], str]]]  # of each, a strategy, and what returns what is wrong


def g() -> torch.Generator:
    """A generator, always the same."""
    return torch.Generator().manual_seed(0)


def anew(how: dict[str, Any]) -> dict[str, Any]:
    """Arguments, of which a class or a function is called for a new one."""
    return {key: value() if isinstance(value, type | types.FunctionType) else value for key, value in how.items()}


def named(name: str) -> Any:
    """What has a name below ts_helpers."""
    return pkgutil.resolve_name(f"ts_helpers.{name.split(' ')[0]}")


def cell(kind: str) -> Any:
    """A cell of 2 features and 3 units."""
    return named(kind)(**anew(CALLS[kind]))


def square(network: Any, x: torch.Tensor) -> torch.Tensor:
    """A loss."""
    return network(x).square().mean()


def right_inverse(alpha: float | torch.Tensor) -> Any:
    """The raw number that assigning alpha sets."""
    return cell("cells.CTRNNCell").parametrizations.alpha[0].right_inverse(alpha)


def started(init: Any) -> Callable[..., Any]:
    """The gates that an init leaves behind."""

    @functools.wraps(init)
    def start(gates: Any, **how: Any) -> Any:
        init(gates, **how)
        return gates

    return start


def of_a_stack(x: torch.Tensor, state: torch.Tensor, V: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The outputs of one network for several inputs, compiled."""
    one = functools.partial(cells.unroll, cell("cells.ARUCell"), state=state, read_out=(V, c))
    return torch.vmap(one)(x) if isinstance(x, torch.Tensor) and x.ndim else one(x)


SIZES = dict(input_size=2, hidden_size=3, generator=g)
DIALLED = SIZES | dict(alpha=0.5, dial=timescales.Direct)
DRAWN = dict(n_steps=9, n_sequences=2, generator=g)
ONE, CODES, IMAGES = torch.ones(5, 3, 2), torch.arange(40) % 3, pixels.Part(torch.ones(4, 9, 1), torch.arange(9))
HOW = dict(epochs=2, n_steps=None, batch_size=2, shuffle_seed=0, optimizer="adam", lr=0.1, lr_scale={"bias": 0.5},
           lower_bounds={"bias": 0.0}, clip_norm=1.0, norm_type=2.0, eval_interval=1, patience=1, lr_patience=1,
           stop_below=0.1, checkpoint=None, loss=lambda: square)  # fmt: skip
COPY = dict(T=3, n_sequences=2, generator=g)
ARU = dict(alpha_s=0.5, alpha_r=0.5, dial=timescales.Direct, scale=1.0, generator=g)
LOWER, UPPER = (
    functools.partial(cells.ARUCell, *sizes, 0.5, 0.5, timescales.Direct(), generator=g()) for sizes in ((5, 2), (2, 3))
)
CALLS: dict[str, dict[str, Any]] = {
    "cells.CTRNNCell": DIALLED, "cells.LeakyRNNCell": DIALLED, "cells.RNNCell": SIZES, "cells.GRU": SIZES,
    "cells.GatedCell": SIZES | dict(shared=True),
    "cells.ARUCell": ARU | dict(input_size=2, hidden_size=3, f=torch.tanh),
    "cells.MTRNNCell": dict(input_size=2, layers=(2, 1), tau=(2.0, 4.0), dial=timescales.Direct, update="sequential",
                            generator=g),
    "cells.ARUStack": dict(lower=lambda: LOWER(), upper=lambda: UPPER()),
    "cells.Network": dict(cell=lambda: cell("cells.RNNCell"), units=3, features=2, read=2, scale=1.0, generator=g),
    "cells.Network.forward": dict(x=ONE),
    "cells.unroll": dict(cell=lambda: cell("cells.ARUCell"), x=ONE, state=torch.ones(3, 6),
                         read_out=(torch.ones(2, 3), torch.ones(2))),
    "cells.unroll of a stack": dict(x=ONE.expand(9, 5, 3, 2), state=torch.ones(3, 6), V=torch.ones(2, 3),
                                    c=torch.ones(2)),
    "seeding.generator_of": dict(seed=3),
    "progress.progress": dict(total=2, first=0),
    "fit.fit": dict(networks=lambda: nn.Linear(2, 1), data=[ONE], metrics={"loss": square}, eval_data=[ONE]) | HOW,
    "fit.fit of several": dict(networks=lambda: [nn.Linear(2, 1), nn.Linear(2, 1)],
                               data=[ONE.expand(2, 5, 3, 2)]) | HOW,
    "timescales.Clamped": dict(floor=1.0), "timescales.LogTau": dict(dt=1.0),
    "timescales.Dial.right_inverse": dict(alpha=0.5),
    "timescales.set_dial": dict(module=lambda: nn.LayerNorm(2), name="weight", dial=timescales.Direct),
    "timescales.raw_name": dict(name="cell.alpha"),
    "timescales.set_gate_bias_": dict(gates=lambda: nn.LSTM(2, 3), gate="f", b=1.0),
    "timescales.chrono_init_": dict(gates=lambda: torch.zeros(3), T_max=9.0, T_min=2.0, generator=g),
    "timescales.unknown_range_init_": dict(gates=lambda: nn.GRU(2, 3), T_max=9, generator=g),
    "timescales.heavy_tailed": dict(T_max=9),
    "datasets.copying.copying": COPY, "datasets.copying.variable_copying": COPY, "datasets.copying.adding": COPY,
    "datasets.copying.memoryless": dict(n_steps=20),
    "datasets.pixels.coarser": dict(part=IMAGES, side=2),
    "datasets.pixels.images": dict(source="mnist10k", folder=None, generator=g),
    "datasets.pixels.permutation": dict(n_pixels=9, generator=g),
    "datasets.pixels.some": dict(part=IMAGES, n=3),
    "datasets.recall.recall": dict(n_back=5, n_sequences=2, generator=g),
    "datasets.recall.two_waves": DRAWN | dict(dt=0.01),
    "datasets.ring.ring_weights": dict(w_s=2.0, w_p=3.0, w_n=-4.0),
    "datasets.ring.ring_teacher": dict(tau=(2.0, 5.0, 10.0), dt=0.01),
    "datasets.ring.ring_oscillation": dict(n_steps=5, teacher=lambda: ring.ring_teacher()),
    "datasets.sines.sums_of_sines": dict(components=sines.COMPONENTS, n_steps=9),
    "datasets.sines.random_components": dict(n_sequences=1, generator=g),
    "datasets.sines.load_sequences": dict(path="mine.npy"),
    "datasets.teachers.smoothed_noise": DRAWN | dict(features=2, window=5, order=2),
    "datasets.teachers.truncated_gaussian": dict(n=5, mean=0.5, sd=0.2, generator=g),
    "datasets.text.cleaned": dict(text="a 1"), "datasets.text.characters": dict(source="mine.txt"),
    "datasets.text.words": dict(source="mine.txt", most=5),
    "datasets.text.streams": dict(codes=CODES, batch=2, length=3),
    "datasets.warping.warp": dict(letters=torch.ones(4, 2), lengths=torch.full((4, 2), 3), n_steps=9),
    "datasets.warping.warped": DRAWN | dict(least=1, most=3), "datasets.warping.padded": DRAWN | dict(least=1, most=3),
    "datasets.warping.memoryless_warped": dict(n_steps=9, least=1, most=3),
    "papers.benureau2018.NextStep": dict(cell=lambda: cell("cells.MTRNNCell"), features=2, n_sequences=2, generator=g),
    "papers.benureau2018.NextStep.generate": dict(x=torch.ones(2, 2), n_steps=3),
    "papers.benureau2018.closed_loop_error": dict(generated=ONE[1:], x=ONE, against="aligned"),
    "papers.benureau2018.Choices": dict(dial="log", loss="sum"),
    "papers.benureau2018.experiment": dict(names=["learn 8"], x=ONE, n_seeds=1, seed=0, epochs=1),
    "papers.matsuki2018.OnlineLearner": dict(
        W=torch.zeros(2, 2, 3), tau=torch.ones(2, 3), u=torch.zeros(2, 3), dt=0.01, eta_w=0.1, eta_tau=0.1, eta_u=0.1,
        update="log", tau_gradient="local", weight_gradient="exact", forcing="after"),
    "papers.matsuki2018.OnlineLearner.run": dict(steps=3),
    "papers.matsuki2018.OnlineLearner.teach": dict(d=torch.ones(4, 2, 3), which=torch.arange(3)),
    "papers.quax2020.network": dict(alpha_s=0.5, alpha_r=0.5, units=3, scale=1.0, seed=(0,)),
    "papers.quax2020.resting": dict(cell=lambda: cell("cells.ARUCell"), level=0.5),
    "papers.quax2020.teacher_data": dict(teacher=lambda: cell("papers.quax2020.network"), features=2, n_train=2,
                                         n_valid=2, window=7, order=3, seed=(0,)),
    "papers.quax2020.grid": dict(step=0.1),
    "papers.tallec2018.classify.shuffled_batches": dict(part=IMAGES, batch_size=2),
    "papers.tallec2018.lstm.LSTMNetwork": SIZES | dict(output_size=2),
    "papers.tallec2018.memory_tasks.compare": dict(
        task="adding", T=3, starts={"standard": memory_tasks.standard}, n_seeds=1, n_steps=2, n_evaluations=1, units=2,
        batch_size=2, lr=0.1, late=0, stop_below=0.1, seed=0),
    "papers.tallec2018.ngram.witten_bell_bits": dict(train=CODES, held=CODES, n_symbols=3, longest=2),
    "papers.tallec2018.text_models.BatchNormLSTM": SIZES | dict(max_steps=4),
    "papers.tallec2018.text_models.RecurrentHighway": SIZES | dict(depth=2),
    "papers.tallec2018.text_models.StepNorm": dict(features=2, max_steps=3, shift=True),
}  # fmt: skip
INSTEAD: dict[str, Callable[[], Callable[..., Any]]] = {  # of a function of that name, what is called
    "cells.Network.forward": lambda: cell("papers.quax2020.network"),
    "cells.unroll of a stack": lambda: of_a_stack,
    "seeding.generator_of": lambda: lambda seed: seeding.generator_of(seed),
    "progress.progress": lambda: lambda total, first: list(progress.progress([1, 2], "x", total, first)),
    "timescales.Dial.right_inverse": lambda: right_inverse,
    **{f"timescales.{name}": lambda name=name: started(named(f"timescales.{name}"))
       for name in ("chrono_init_", "unknown_range_init_", "set_gate_bias_")},
    "papers.benureau2018.NextStep.generate": lambda: cell("papers.benureau2018.NextStep").generate,
    "papers.matsuki2018.OnlineLearner.run": lambda: cell("papers.matsuki2018.OnlineLearner").run,
    "papers.matsuki2018.OnlineLearner.teach": lambda: cell("papers.matsuki2018.OnlineLearner").teach,
}  # fmt: skip
for name in [name for name in CALLS if re.fullmatch(r"cells\.\w*(Cell|GRU|Stack)", name)]:
    INSTEAD[f"{name}.forward"] = lambda name=name: lambda x, state: cell(name)(x, state)  # type: ignore[misc]
    CALLS[f"{name}.forward"] = dict(x=ONE[0], state=lambda name=name: cell(name).initial_state(ONE[0]).detach().clone())

INNER = "|".join((  # not tried by themselves: called by what is tried, with what it has checked, or without arguments
    r"engine\..*", r"fit\.(adam|rmsprop)", r"cells\.identity", r"timescales\.(Dial|Direct|Gate|\w+\.(forward|limits))",
    r".*\.(initial_state|activity|inverse|gate|dense|read_out|chrono_init_|write|step|restart)",
    r"papers\..*\.(NextStep|StepNorm|LSTMNetwork|BatchNormLSTM|RecurrentHighway|LanguageModel)\.forward",
    r"papers\..*\.(LanguageModel|network|loss|train|for_each|coords|ready|standard|chrono)",
))  # fmt: skip
# figures and what is read off results; losses and metrics, which `fit` calls
RESULTS = re.compile("xarray|matplotlib|ndarray|SupportsFloat|net: |network: |model: ")


def public() -> list[str]:
    """The public functions, classes and methods that have neither a line in CALLS nor a reason not to."""
    found = []
    for each in pkgutil.walk_packages(ts_helpers.__path__, "ts_helpers."):
        if re.search(r"\.(book|run|kernels|lanes|__main__|_\w+)\b", each.name):
            continue
        for name, thing in vars(importlib.import_module(each.name)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != each.name or not callable(thing):
                continue
            path = f"{each.name}.{name}".removeprefix("ts_helpers.")
            if inspect.isclass(thing):
                methods = [key for key, value in vars(thing).items() if inspect.isfunction(value) and key[0] != "_"]
                held = is_dataclass(thing) or issubclass(thing, tuple)
                found += [] if held else [path, *(f"{path}.{key}" for key in methods)]
            elif not RESULTS.search(str(inspect.signature(thing))):
                found.append(path)
    return [path for path in found if path not in CALLS and not re.fullmatch(INNER, path)]


NUMBERS = st.integers(-3, 12) | st.sampled_from([s * n for n in (2**31, 2**63, 2**64, 10**400) for s in (1, -1)])
OTHERS = [None, True, False, "", "3", "auto", "\0", "x" * 5000, "pipe", ".", b"x", [], [1], [[1.0], 2], (), {},
          {"a": 1}, 1j, object(), Fraction(1, 3), np.float32(0.5), np.int64(2), np.ones(3), math.nan, math.inf,
         -math.inf,
          1e308, 5e-324, nn.Linear(2, 2), nn.LSTM(2, 3, bias=False), nn.RNN(2, 3), abs, torch.Generator,
          lambda *_: None]  # fmt: skip
TYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """Small tensors of many types."""
    shape, kind = draw(st.lists(st.integers(0, 4), max_size=4)), draw(st.sampled_from(TYPES))
    number = draw(st.sampled_from([0, 1, 2, *([-1, math.nan, math.inf, 0.5] if kind.is_floating_point else [])]))
    return torch.full(shape, number, dtype=kind, device=draw(st.sampled_from(["cpu", "cpu", "cpu", "meta"])))


HOSTILE = NUMBERS | st.floats() | st.floats(0, 2) | st.sampled_from(OTHERS) | tensors() | st.text(max_size=5)
PLAIN = settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
TEXTS = st.text() | (st.integers() | st.floats()).map(str) | st.sampled_from((
    "None", "True", "nan", "inf", "-inf", "1e400", "10**400", "9" * 400, "-0", "1_0", "0x1", " 3 ", "٣", "1e-400", ".",
    "/", "~", "[]", "2018", "3.0", "smoke", "auto", "digits", "mine.npy", "x" * 5000, "a\0b"))  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=3), st.integers(0, 9)), max_size=4)


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of the type that a signature names."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(part, value) for part in parts)
    if origin is typing.Literal:
        return isinstance(value, str) and value in parts
    if isinstance(value, bool):
        return kind not in (int, float)
    known = {int: Integral, float: Real, torch.Tensor: torch.Tensor | np.ndarray | list, Any: object}
    known[Sequence] = Sequence | torch.Tensor | np.ndarray
    return kind is inspect.Parameter.empty or isinstance(value, known.get(kind, origin or kind))


def sound(result: Any) -> bool:
    """Whether all numbers in a result are there, and finite."""
    match result:
        case torch.Tensor():
            return not result.is_meta and bool(torch.isfinite(result).all())
        case nn.Module():
            return all(map(sound, [*result.parameters(), *result.buffers()]))
        case np.ndarray():
            return result.dtype.kind not in "fc" or bool(np.isfinite(result).all())
        case float():
            return math.isfinite(result)
        case list() | tuple():
            return all(map(sound, result))
        case _:
            return all(map(sound, vars(result).values())) if is_dataclass(result) else True


def loop(given: dict[str, Any], made: torch.Tensor) -> bool:
    """Whether states or outputs of `unroll` are those of a loop over its steps."""
    cell, state, states = given["cell"], given["state"], []
    state = cell.initial_state(given["x"][0]) if state is None else state
    for x_t in given["x"]:
        states.append(state := cell(x_t, state))
    shown = torch.stack(states)
    if given["read_out"]:
        shown = nn.functional.linear(cell.activity(shown), *given["read_out"])
    return torch.allclose(made, shown, equal_nan=True)


ORACLES: dict[str, Callable[[dict[str, Any], Any], bool]] = {
    "cells.unroll": loop,
    "datasets.copying.copying": lambda a, z: z[0].shape == z[1].shape == (a["T"] + 20, a["n_sequences"]),
    "datasets.copying.adding": lambda a, z: torch.allclose(z[0].prod(-1).sum(0), z[1][:, 0]),
    "datasets.pixels.permutation": lambda a, z: z.sort().values.tolist() == list(range(a["n_pixels"])),
    "datasets.recall.recall": lambda a, z: torch.equal(z[0][: -a["n_back"]], z[1][a["n_back"] :]),
    "datasets.recall.two_waves": lambda a, z: torch.equal(z[0][1:], z[1][:-1]) and sound(z),
    "datasets.teachers.smoothed_noise": lambda a, z: z.shape == (a["n_steps"], a["n_sequences"], a["features"]),
    "datasets.teachers.truncated_gaussian": lambda a, z: len(z) == a["n"] and bool(((z > 0) & (z < 1)).all()),
    "datasets.text.streams": lambda a, z: z[0].shape == z[1].shape == (len(z[0]), a["length"], a["batch"]),
    "datasets.warping.warp": lambda a, z: all(each.shape == (a["n_steps"], a["letters"].shape[1]) for each in z),
    "datasets.warping.memoryless_warped": lambda a, z: 0 <= z < 2.8,
    "timescales.heavy_tailed": lambda a, z: len(z) == a["T_max"] and abs(float(z.sum()) - 1) < 1e-9,
    "timescales.Dial.right_inverse": lambda a, z: torch.allclose(z, torch.as_tensor(a["alpha"]).to(z)),
    "papers.quax2020.grid": lambda a, z: 1.0 in z,
    "papers.tallec2018.ngram.witten_bell_bits": lambda a, z: z.shape == (a["longest"] + 1,) and sound(z),
}


ALSO = {  # other names of an argument: in what it is passed on to, or makes impossible
    "tau": "alpha", "alpha_s": "alpha", "alpha_r": "alpha", "dt": "alpha", "path": "sequences", "source": "text",
    "data": "x", "features": "x", "units": "hidden_size", "batch_size": "n_sequences", "which": "d", "read": "units",
    "least": "most", "layers": "tau", "module": "Module", "eval_data": "x", "n_symbols": "train",
    "shuffle_seed": "seed",
}  # fmt: skip


class Late(BaseException):
    """A call takes too long."""


def late(*_: Any) -> None:
    """Stop a call."""
    raise Late


def verdict(name: str, function: Callable[..., Any], given: dict[str, Any], changed: list[str]) -> str:
    """What is wrong with a call, or nothing."""
    start, sign = time.monotonic(), inspect.signature(function).parameters
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        made = function(**given)
    except (ValueError, TypeError) as error:
        words = "|".join(f"{key}|{ALSO.get(key, key)}" for key in changed)
        return "" if changed and re.search(rf"\b({words})\b", str(error)) else f"names none of {changed}: {error!r}"
    except Late:
        return f"still runs after {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - start > SECONDS:
        return f"took more than {SECONDS} s"
    if wrong := [key for key in changed if key in sign and not fits(sign[key].annotation, given[key])]:
        return f"took {wrong} of a wrong type"
    wild = [value for value in given.values() if isinstance(value, torch.Tensor) and not sound(value)]
    if not wild and not ORACLES.get(name, lambda _, made: sound(made))(given, made):
        return "gave a wrong result"
    return ""


def tried(what: str, cases: Cases, tries: int) -> dict[str, Any]:
    """A line of the table: an attack on each of the cases, by its strategy, returns what is wrong, or nothing."""
    count, wrong = 0, set[str]()
    for name, (strategy, attack) in cases.items():

        @seed(0)
        @settings(PLAIN, max_examples=tries)
        @given(strategy)
        def go(value: Any) -> None:
            nonlocal count
            count += 1
            if found := attack(value):  # noqa: B023
                wrong.add(f"{name}: {found}")  # noqa: B023

        go()
    print(*(f"CRASHED  {each}" for each in sorted(wrong)), sep="\n", end="\n" * bool(wrong), flush=True)
    return {"what": what, "tried": count, "bad": len(wrong), "of": "crashed"}


def call(name: str, source: Any) -> str:
    """Call a function with up to two hostile arguments."""
    function, given = INSTEAD.get(name, lambda: named(name))(), anew(CALLS[name])
    keys = source.draw(st.lists(st.sampled_from(list(given)), max_size=2, unique=True))
    given |= {key: source.draw(HOSTILE) for key in keys}
    what = verdict(name, function, given, keys)
    return what and f"{', '.join(f'{key}={str(given[key])[:80]!r}' for key in keys)}: {what[:200]}"


def read(parameter: Parameter, text: str) -> str:
    """Read a text as the value of a parameter."""
    try:
        value = parameter.read(text)
    except BaseException as error:
        return "" if isinstance(error, ValueError) and parameter.name in str(error) else f"{text!r}: {error!r}"
    return "" if (value is parameter.default is None) or holds(parameter.rule, value) else f"{text!r} became {value!r}"


def holds(rule: str, value: Any) -> bool:
    """Whether a value is within the rule, found by another way than the runner's."""
    kind, _, rest = rule.partition(" ")
    if kind == "one":
        return value in rest.removeprefix("of ").split(", ")
    if kind in ("file", "folder"):
        return os.path.isfile(value) if kind == "file" else os.path.isdir(value)
    low, high = (Fraction(sys.float_info.max) * 2 * (-1 if "-" in end else 1) if "inf" in end else Fraction(end)
                 for end in rest.removeprefix("in ")[1:-1].split(", "))  # fmt: skip
    if not isinstance(value, int if kind == "int" else int | float) or not math.isfinite(value):
        return False
    return low < value < high or (value == low and "[" in rest) or (value == high and "]" in rest)


def damaged(name: str, content: bytes, reader: Callable[[], Any], changes: list[tuple[int, bytes, int]]) -> str:
    """Read a file whose bytes have changed: numbers, or a ValueError that names it, or the folder and its rule."""
    for at, new, over in changes:
        content = content[:at] + new + content[at + over :]
    Path(name).write_bytes(content)
    try:
        return "" if sound(reader()) else f"{changes}: numbers that are not finite"
    except BaseException as error:
        refused = isinstance(error, ValueError) and re.search(f"{name}|must h", str(error))
        return "" if refused else f"{changes}: {error!r}"
    finally:
        Path(name).unlink()


def of_files() -> dict[str, tuple[bytes, Callable[[], Any]]]:
    """Files of data, and what reads them."""
    stream = io.BytesIO()
    np.save(stream, np.arange(24.0).reshape(2, 4, 3))

    def idx(*shape: int) -> bytes:
        return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + bytes(math.prod(shape))

    for part, n in (("train", 12), ("t10k", 3)):
        Path(f"{part}-labels.idx1-ubyte").write_bytes(idx(n))
    Path("t10k-images-idx3-ubyte").write_bytes(idx(3, 2, 2))
    own = functools.partial(pixels.images, "folder", ".", generator=g())
    return {
        "my.npy": (stream.getvalue(), lambda: sines.load_sequences("my.npy")),
        "my.txt": (b"a word and 1 more\n" * 9, lambda: text.words("my.txt").train),
        "train-images-idx3-ubyte": (idx(12, 2, 2), lambda: own().train.x),
        "train-images.idx3-ubyte.gz": (gzip.compress(idx(12, 2, 2), mtime=0), lambda: own().train.x),
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """Try it all, the same each time."""
    if forgotten := public():
        raise SystemExit(f"benchmarks/stress/inputs.py has no call of {', '.join(forgotten)}")
    rules = [each for name in find([]) for each in Job(name).declared.values()]
    for number in (torch.float32, torch.float64):
        engine.ready(number)  # compiling takes its time once
    matsuki2018.ready()
    tries, before, here = 40 if quick else 800, resource.getrlimit(resource.RLIMIT_AS), os.getcwd()
    mapped_now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        Path("mine.txt").write_text("a word and 1 more\n" * 9)
        np.save("mine.npy", np.ones((2, 4, 1)))
        os.mkfifo("pipe")
        handler = signal.signal(signal.SIGALRM, late)
        resource.setrlimit(resource.RLIMIT_AS, (mapped_now + MEMORY, before[1]))
        try:
            parameters: Cases = {each.rule: (TEXTS, functools.partial(read, each)) for each in rules}
            functions: Cases = {name: (st.data(), functools.partial(call, name)) for name in CALLS}
            files: Cases = {name: (CHANGES, functools.partial(damaged, name, *how)) for name, how in of_files().items()}
            return [
                tried("hostile calls of public functions", functions, tries),
                tried("hostile texts for parameters of the runner", parameters, tries),
                tried("damaged files of data", files, 4 * tries),
            ]
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            signal.signal(signal.SIGALRM, handler)
            os.chdir(here)


if __name__ == "__main__":
    rows = run("--quick" in sys.argv)
    print(*(f"{each['what']}: {each['tried']} tried, {each['bad']} crashed" for each in rows), sep="\n")
    sys.exit(any(each["bad"] for each in rows))
