import numpy as np
import pytest
import torch
from torch import nn

from ts_helpers import streams


def network_of(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def loss(network, x, y):
    return (network(x) - y).square().mean()


def batch(step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


HELD = batch(10_000)


def trained(network=None, loss=loss, batch=batch, held=HELD, rate=0.01, **how):
    network = network or network_of()
    optimizer = torch.optim.RMSprop(network.parameters(), lr=rate, alpha=0.9)
    how = dict(steps=40, every=10) | how
    return network, streams.train(network, loss, batch, held, optimizer=optimizer, **how)


def test_training_is_that_of_a_plain_loop():
    mine, course = trained()
    other, seen = network_of(), []
    optimizer = torch.optim.RMSprop(other.parameters(), lr=0.01, alpha=0.9)
    for step in range(41):
        if step % 10 == 0:
            seen.append(loss(other, *HELD).item())
        optimizer.zero_grad()
        loss(other, *batch(step)).backward()
        if step < 40:
            optimizer.step()
    assert course.loss.tolist() == seen
    assert course.step.tolist() == [0, 10, 20, 30, 40]
    assert torch.equal(mine.weight, other.weight)
    assert (course.taken, course.diverged) == (40, False)


def test_last_look_is_after_the_last_step():
    _, course = trained(steps=25)
    assert course.step.tolist() == [0, 10, 20, 25]
    assert np.isfinite(course.loss).all()


class Killed(Exception):
    """Stands for whatever ends a run."""


def test_run_that_was_killed_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    whole, expected = trained()

    def killing(step):
        if step == 23:
            raise Killed
        return batch(step)

    clock = iter(range(0, 100_000, 61))  # a minute passes with each look at it
    monkeypatch.setattr(streams.time, "perf_counter", lambda: next(clock))
    with pytest.raises(Killed):
        trained(batch=killing, checkpoint=tmp_path)
    asked = []
    resumed, course = trained(batch=lambda step: asked.append(step) or batch(step), checkpoint=tmp_path)
    assert asked == [0, *range(23, 40)]  # the first is asked for to name the checkpoint
    assert course.loss.tolist() == expected.loss.tolist()
    assert torch.equal(resumed.weight, whole.weight)


def test_finished_run_takes_no_further_step(tmp_path):
    whole, expected = trained(checkpoint=tmp_path)
    asked = []
    again, course = trained(batch=lambda step: asked.append(step) or batch(step), checkpoint=tmp_path)
    assert asked == [0]
    assert torch.equal(again.weight, whole.weight)
    assert course.loss.tolist() == expected.loss.tolist()
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt"]


def test_whatever_decides_the_numbers_starts_afresh(tmp_path):
    trained(checkpoint=tmp_path)
    trained(checkpoint=tmp_path, rate=0.02)
    trained(network_of(1), checkpoint=tmp_path)
    trained(batch=lambda step: batch(step + 1), checkpoint=tmp_path)
    trained(held=batch(9_999), checkpoint=tmp_path)
    trained(every=20, checkpoint=tmp_path)
    trained(enough=0.1, checkpoint=tmp_path)
    trained(loss=lambda network, x, y: (network(x) - y).abs().mean(), checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 8


def test_training_stops_when_three_looks_are_low_enough():
    _, whole = trained(steps=400)
    enough = float(whole.loss[10])
    network, course = trained(steps=400, enough=enough)
    low = whole.loss <= enough
    stop = next(k for k in range(2, len(low)) if low[k - 2 : k + 1].all())
    assert course.taken == whole.step[stop] < 400
    assert course.loss[: stop + 1].tolist() == whole.loss[: stop + 1].tolist()
    assert np.isnan(course.loss[stop + 1 :]).all()
    assert loss(network, *HELD).item() == course.loss[stop]


def test_loss_that_is_not_finite_stops_before_it_touches_the_network(tmp_path):
    def wild(step):
        x, y = batch(step)
        return x, y * (torch.inf if step == 15 else 1)

    mine, course = trained(batch=wild, checkpoint=tmp_path)
    other, _ = trained(steps=15)
    assert (course.diverged, course.taken) == (True, 15)
    assert torch.equal(mine.weight, other.weight)
    assert np.isnan(course.loss[2:]).all()
    asked = []
    again, course = trained(batch=lambda step: asked.append(step) or wild(step), checkpoint=tmp_path)
    assert asked == [0]
    assert (course.diverged, course.taken) == (True, 15)
    assert torch.equal(mine.weight, again.weight)


def test_no_half_written_checkpoint_is_left(tmp_path, monkeypatch):
    def full(state, file):
        file.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        trained(checkpoint=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [dict(steps=0), dict(every=0)])
def test_no_steps_are_refused(how):
    with pytest.raises(ValueError, match="steps and every must be 1 or more"):
        trained(**how)
