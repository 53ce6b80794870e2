import inspect
import json
from dataclasses import replace

import limits
import memory
import numpy as np
import oscillator
import pytest
import run
import ways
import xarray as xr
from nbformat import v4
from stress import inputs, kills
from workloads import WORKLOADS

from ts_helpers.book import records

TINY = {name: replace(work, networks=2, units=6, steps=10, batch=2) for name, work in WORKLOADS.items()}


class Made:
    """A way whose steps take as long as it is told, for two networks."""

    networks = 2

    def __init__(self, seconds, numbers=(1.0, 1.0)):
        self.seconds, self.numbers, self.turns = seconds, numbers, []

    def train(self, steps):
        self.turns.append(steps)
        return self.seconds * steps

    def measure(self):
        return list(self.numbers)


@pytest.mark.parametrize("name", run.PARTS)
def test_ways_have_the_same_loss_and_gradient_before_and_after_steps(name):
    known = run.PARTS[name][1]
    there, absent = run.build(TINY.get(name, oscillator.Ring(networks=2, steps=10)), known)
    assert {"naive loop", "careful loop", "plain vmap"} <= set(there)
    assert "engine" in there or WORKLOADS[name].cell == "lstm"
    assert set(there) | set(absent) == set(ways.WAYS)
    run.prove(there)


@pytest.mark.parametrize("numbers", [(0.5, 1.0), (0.4, 2.0)], ids=["gradient", "loss"])
def test_a_way_that_does_other_work_is_named(numbers):
    with pytest.raises(AssertionError, match="wrong does other work"):
        run.prove({"right": Made(1.0, (0.5, 2.0)), "wrong": Made(1.0, numbers)})


def test_ratios_are_taken_within_repetitions_and_goals_say_what_was_reached():
    seconds = {"engine": [1.0, 10.0, 4.0], "JAX": [7.0, 60.0, 16.0], "engine before": [2.0, 8.0, 2.0]}
    grown = {"values": [200, 5], "seconds": {"engine": [[1.0], [1.0]], "JAX": [[2.0], [9.0]]}}
    assert run.against_goals({"landscape, 10 units": {"seconds": seconds}}, {"networks": grown}).splitlines() == [
        "landscape, 10 units, over engine before: 0.85 wanted, 0.80 [0.50, 2.00] missed",
        "landscape, 10 units, over JAX: 1 wanted, 6.00 [4.00, 7.00] reached",  # the medians' ratio would be 4
        "200 networks of the landscape, 10 units, over JAX: 3 wanted, 2.00 [2.00, 2.00] missed",
    ]


def test_times_are_of_a_step_of_one_network_and_ways_take_turns():
    made = {"slow": Made(0.5), "fast": Made(0.05)}
    times = run.repeat(made, repetitions=3, seconds=0.2)
    assert made["slow"].turns == [1, 1, 1, 1]  # the first to see how long it takes
    assert made["fast"].turns == [1, 4, 4, 4]
    np.testing.assert_allclose(times["slow"], [0.25] * 3)
    np.testing.assert_allclose(times["fast"], [0.025] * 3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_limits_take_the_fastest_of_their_ways(name):
    products = limits.Products(TINY[name])
    assert set(products.by) <= {"NumPy's BLAS", "eight at a time", "oneDNN"}
    assert len(products.by) == 8
    assert products.train(2) > 0
    assert limits.Traffic(TINY[name]).train(2) > 0


def test_peak_memory_is_measured_in_a_process_of_its_own():
    found = memory.peaks("recall", "plain vmap", [20])
    if found:  # elsewhere than on Linux it cannot be had
        assert found["bytes"][0] > 20 * 125 * 20 * 10 * 4  # a state of each unit at least


def test_what_is_written_is_plain_json_of_every_way_and_repetition_like_the_record_of_the_book(monkeypatch):
    parts = {name: (of[name], ways.WAYS) for name, of in (("recall", WORKLOADS), ("LSTM copy", TINY))}
    monkeypatch.setattr(run, "PARTS", parts)  # the first as it is: so another process has it
    monkeypatch.setattr(run, "WORKLOADS", TINY)
    monkeypatch.setattr(memory, "peaks", lambda name, way, networks: {"networks": networks, "bytes": [1, 2]})
    monkeypatch.setattr(run, "SCALES", {"networks": (1, 3), "units": (2, 4)})
    found = run.measure([*run.PARTS, "scales", "memory"], 2, 0.0, beside=run.ROOT)
    written = json.loads(json.dumps(found, allow_nan=False))
    assert "engine before" in written["workloads"]["recall"]["seconds"]
    for found in written["workloads"].values():
        assert set(found["seconds"]) | set(found["absent"]) == {*ways.WAYS, "engine before"}
        assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    for found in written["scales"].values():
        for points in found["seconds"].values():
            assert [len(times) for times in points] == [2] * len(found["values"])
    assert set(written["memory"]) == set(WORKLOADS)
    assert written["machine"]["threads"] == 1
    monkeypatch.undo()
    recorded = json.loads(run.RECORD.read_text())
    assert set(recorded) == set(written)
    assert set(recorded["workloads"]) == set(run.PARTS)
    assert {size: tuple(found["values"]) for size, found in recorded["scales"].items()} == run.SCALES
    assert set(recorded["memory"]) == set(WORKLOADS)
    assert recorded["goals"] == run.GOALS
    assert [recorded["compile"][f"one network, {name}"]["functions"] for name in WORKLOADS] == [0] * len(WORKLOADS)


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What an undisturbed run of seed 0 leaves, as the stress finds it, with a reader's own file beside."""
    case = kills.Case(tmp_path, {}, tmp_path / "out")
    monkeypatch.setenv("TS_RECORDS", str(case.out))
    for seed in (0, 1):
        made = dict(notebook=kills.NAME, scale="smoke", seed=seed, device="cpu", start="", parameters={}, settings={})
        results = xr.Dataset({"loss": ("run", [seed], {"long_name": "loss", "units": "1"})})
        records.save(made | dict(threads=1, seconds=1.0, commit=None, dirty=None), results, [], [])
        output = v4.new_output("stream", text=f"seed {seed}")
        case.executed.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(outputs=[output])])))
        case.right[seed] = {name: (case.record / name).read_bytes() for name in kills.RECORD[:2]} | {
            "shown": case.shown()
        }
    (case.record / kills.NOTES).write_text("mine")
    return case


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("training/results.nc", b"HDF", b"", "the record is not whole"),
        ("training/provenance.json", b'"seed": 1', b'"seed": 0', "the record is another's"),
        ("training/provenance.json", b"{", b"", "the record is not whole"),
        ("training.ipynb", b"{", b"", "the executed notebook is not whole"),
        ("training.ipynb", b"seed 1", b"seed 2", "the executed notebook shows ['seed 2']"),
        ("training/notes.txt", None, None, "a file of the reader's own is gone"),
        ("training/.checkpoint.damaged", b"", b"", "damaged: .checkpoint.damaged"),
    ],
)
def test_stress_sees_what_is_half_written_another_s_or_gone(left, name, old, new, found):
    assert left.look() == left.look(1) == []
    assert len(left.look(0)) == 2  # neither the record nor the notebook is that of seed 0
    file = left.record.parent / name
    content = file.read_bytes() if file.exists() else b""
    file.unlink(missing_ok=True)
    if new is not None:
        file.write_bytes(content.replace(old, new, 1))
    (wrong,) = left.look()
    assert wrong.startswith(found)


@pytest.mark.parametrize(
    ("steps", "behind"),
    [
        ("a 0 1 9|a 0 2 18|b 0 2 27", []),  # a step of nine seconds was taken again
        ("a 0 1 9|a 0 2 18|b 0 2 20|c 0 3 30", []),
        ("a 0 0 0|a 0 1 9|a 0 2 19|b 0 0 20", ["seed 0: 2 steps were taken, then it began at 0, 19.0 s behind"]),
        ("a 0 4 0|b 0 0 20", ["seed 0: 4 steps were taken, then it began at 0, inf s behind"]),
        ("a 0 0 0|a 0 1 90|o 0 -1 0|b 0 0 99", []),  # it was over
        ("a 0 0 0|a 0 1 90|b 1 0 99", []),  # another seed
    ],
)
def test_stress_tells_how_much_training_a_kill_has_cost(steps, behind):
    looked_at = "a 0 0 0|b 0 0 0|c 0 0 0|"  # the first batch of each process
    assert kills.lost((looked_at + steps).replace("|", "\n"), interval=10) == behind


def test_no_public_function_is_left_out_of_the_stress():
    assert inputs.public() == []


def test_stress_calls_functions_by_the_names_of_their_arguments():
    for name, given in inputs.CALLS.items():
        function = inputs.INSTEAD[name]() if name in inputs.INSTEAD else inputs.named(name)
        inspect.signature(function).bind(**given)


def test_recorded_stress_tried_everything_and_lost_nothing():
    recorded = json.loads((run.ROOT / "results" / "stress.json").read_text())["rows"]
    assert {row["bad"] for row in recorded} == {0}
    tried = {row["what"]: row["tried"] for row in recorded}
    assert tried["`kill -9`, short runs"] >= 300
    assert tried["`kill -9`, trainings with checkpoints"] >= 20
    assert min(tried.values()) > 0
