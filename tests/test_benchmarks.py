import json
from dataclasses import replace

import limits
import memory
import numpy as np
import oscillator
import pytest
import run
import ways
from workloads import WORKLOADS

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


@pytest.mark.parametrize("name", WORKLOADS)
def test_ways_have_the_same_loss_and_gradient_before_and_after_steps(name):
    there, absent = run.build(TINY[name], ways.WAYS)
    assert {"naive loop", "careful loop", "plain vmap"} <= set(there)
    assert "engine" in there or WORKLOADS[name].cell == "lstm"
    assert set(there) | set(absent) == set(ways.WAYS)
    run.prove(there)


def test_ways_of_the_oscillator_learn_the_same():
    there, _ = run.build(oscillator.Ring(networks=2, steps=10), oscillator.RING_WAYS)
    assert {"naive loop", "careful loop", "plain vmap", "engine"} <= set(there)
    run.prove(there)
    assert there["engine"].measure()[1] > 0.01  # weights, 0 at first


def test_a_way_that_does_other_work_is_named():
    work = TINY["recall"]

    def forgetful(cell, x, state=None, *, read_out=None):
        return ways.careful(cell, x.flip(0), state, read_out=read_out)

    there = {"right": ways.Loop(work, ways.careful, True), "wrong": ways.Loop(work, forgetful, True)}
    with pytest.raises(AssertionError, match="wrong does other work"):
        run.prove(there)


def test_a_way_that_leaves_a_gradient_out_is_named():
    with pytest.raises(AssertionError, match="half does other work"):
        run.prove({"whole": Made(1.0, (0.5, 2.0)), "half": Made(1.0, (0.5, 1.0))})


def test_jax_is_only_an_extra(monkeypatch):
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    there, absent = run.build(TINY["recall"], ways.WAYS)
    assert absent["JAX"] == "not installed"
    assert "JAX" not in there


def test_ratios_are_taken_within_repetitions():
    assert run.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)  # the medians' ratio would be 1


def test_times_are_of_a_step_of_one_network_and_ways_take_turns():
    made = {"slow": Made(0.5), "fast": Made(0.05)}
    times = run.repeat(made, repetitions=3, seconds=0.2)
    assert made["slow"].turns == [1, 1, 1, 1]  # the first to see how long it takes
    assert made["fast"].turns == [1, 4, 4, 4]
    np.testing.assert_allclose(times["slow"], [0.25] * 3)
    np.testing.assert_allclose(times["fast"], [0.025] * 3)


def test_goals_say_what_was_reached():
    seconds = {"engine": [1.0, 1.0, 1.0], "JAX": [4.0, 6.0, 7.0], "plain vmap": [2.0, 2.0, 2.0]}
    text = run.against_goals({"landscape, 10 units": {"seconds": seconds}})
    assert text.splitlines() == [
        "landscape, 10 units, over JAX: 5 wanted, 6.00 [4.00, 7.00] reached",
        "landscape, 10 units, over plain vmap: 3 wanted, 2.00 [2.00, 2.00] missed",
    ]


@pytest.mark.parametrize("name", WORKLOADS)
def test_limits_take_the_fastest_of_their_ways(name):
    products = limits.Products(TINY[name])
    assert set(products.by) <= {"NumPy's BLAS", "torch.mm", "eight at a time", "oneDNN"}
    assert len(products.by) == 8
    assert products.train(2) > 0
    assert limits.Traffic(TINY[name]).train(2) > 0


def test_peak_memory_is_measured_in_a_process_of_its_own():
    found = memory.peaks("recall", "plain vmap", [2, 20])
    if found:  # elsewhere than on Linux it cannot be had
        assert found["networks"] == [2, 20]
        assert found["bytes"][1] > 20 * 125 * 20 * 10 * 4  # a state of each unit at least


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PARTS", {name: (TINY[name], ways.WAYS) for name in ("recall", "LSTM copy")})
        patch.setattr(run, "SCALES", {"networks": (1, 3), "units": (2, 4)})
        patch.setattr(run, "WORKLOADS", TINY)
        patch.setattr(memory, "peaks", lambda name, way, networks: {"networks": networks, "bytes": [1, 2]})
        return run.measure([*run.PARTS, "scales", "memory"], 2, 0.0)


def test_what_is_written_is_plain_json_with_a_time_for_every_way_and_repetition(measured):
    written = json.loads(json.dumps(measured, allow_nan=False))
    for found in written["workloads"].values():
        assert set(found["seconds"]) | set(found["absent"]) == set(ways.WAYS)
        assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    for found in written["scales"].values():
        for points in found["seconds"].values():
            assert [len(times) for times in points] == [2] * len(found["values"])
    assert set(written["memory"]) == set(WORKLOADS)
    assert written["machine"]["threads"] == 1


def test_the_record_of_the_book_is_of_this_suite(measured):
    kept = json.loads(run.RECORD.read_text())
    assert set(kept) == set(measured)
    assert set(kept["workloads"]) == set(run.PARTS)
    assert {size: tuple(found["values"]) for size, found in kept["scales"].items()} == run.SCALES
    assert set(kept["memory"]) == set(WORKLOADS)
    assert kept["goals"] == run.GOALS
