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


def test_gradient_of_ones_own_is_taken_in_the_place_of_the_usual_one():
    def gradient(*data):
        heard.append(data[0])
        finite = streams._gradient(mine, loss, *data)
        return finite & torch.tensor(len(heard) < 30)

    heard, mine = [], network_of()
    _, course = trained(mine, gradient=gradient)
    _, usual = trained()
    assert len(heard) == 30 and all(torch.equal(x, batch(step)[0]) for step, x in enumerate(heard))
    np.testing.assert_array_equal(course.loss[:3], usual.loss[:3])
    assert (course.taken, course.diverged) == (29, True)  # the thirtieth was said not to be finite


def test_gradient_of_ones_own_in_another_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be float32, which gradient is in, got 'bfloat16'"):
        trained(gradient=streams._gradient, precision="bfloat16")


def test_gradients_are_cut_down_to_the_norm_asked_for():
    how = dict(steps=1, every=1)
    network, optimizer = network_of(), torch.optim.SGD
    loss(network, *batch(0)).backward()
    norm = float(torch.cat([p.grad.flatten() for p in network.parameters()]).norm())
    for clip in (norm / 3, norm * 3):
        mine = network_of()
        streams.train(mine, loss, batch, HELD, optimizer=optimizer(mine.parameters(), lr=1.0), clip=clip, **how)
        for moved, p in zip(mine.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(moved, p - p.grad * min(1, clip / norm))


def test_looks_are_in_evaluation_mode_and_steps_in_training_mode():
    modes = []

    def listening(network, x, y):
        modes.append("training" if network.training else "evaluation")
        return (network(x) - y).square().mean()

    network, _ = trained(loss=listening, steps=2, every=2)
    assert modes == ["evaluation", "training", "training", "evaluation"]
    assert network.training


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
    trained(clip=0.1, checkpoint=tmp_path)
    trained(enough=0.1, checkpoint=tmp_path)
    trained(loss=lambda network, x, y: (network(x) - y).abs().mean(), checkpoint=tmp_path)
    trained(look=furthest, checkpoint=tmp_path)
    trained(patience=3, checkpoint=tmp_path)
    trained(precision="bfloat16", checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 12


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


def furthest(network, x, y):
    return (network(x) - y).abs().max()


def test_looks_are_at_what_is_to_be_looked_at():
    network, course = trained(look=furthest)
    other, losses = trained()
    assert torch.equal(network.weight, other.weight)
    assert course.loss[-1] == furthest(network, *HELD).item() != losses.loss[-1]


def turning(step):
    """Data whose target turns round after step 30, so that what was learned until then was the best for HELD."""
    x, y = batch(step)
    return x, y if step < 30 else -y


def test_patience_stops_and_leaves_the_network_as_it_was_at_the_best_look():
    network, course = trained(batch=turning, steps=400, patience=4)
    best, _ = trained(batch=turning, steps=30)
    assert np.nanargmin(course.loss) == 3
    assert course.taken == 70
    assert np.isfinite(course.loss[:8]).all() and np.isnan(course.loss[8:]).all()
    assert torch.equal(network.weight, best.weight)
    assert loss(network, *HELD).item() == course.loss[3]


def test_the_best_look_is_the_first_of_those_with_the_least():
    network, course = trained(batch=turning, steps=60, patience=4, look=lambda network, x, y: torch.tensor(1.0))
    assert torch.equal(network.weight, network_of().weight)
    assert course.taken == 40


def test_without_patience_the_network_is_left_as_it_ended():
    network, course = trained(batch=turning)
    assert loss(network, *HELD).item() == course.loss[-1] > course.loss.min()


@pytest.mark.parametrize("killed", [23, 53])
def test_best_look_outlives_a_run_that_was_killed(killed, tmp_path, monkeypatch):
    whole, expected = trained(batch=turning, steps=400, patience=4)

    def killing(step):
        if step == killed:
            raise Killed
        return turning(step)

    clock = iter(range(0, 100_000, 61))
    monkeypatch.setattr(streams.time, "perf_counter", lambda: next(clock))
    how = dict(steps=400, patience=4, checkpoint=tmp_path)
    with pytest.raises(Killed):
        trained(batch=killing, **how)
    for _ in range(2):  # and once more, when all is done
        asked = []
        network, course = trained(batch=lambda step: asked.append(step) or turning(step), **how)  # noqa: B023
        np.testing.assert_array_equal(course.loss, expected.loss)
        assert torch.equal(network.weight, whole.weight)
    assert asked == [0]


def test_products_are_taken_in_bfloat16_where_that_is_asked_for():
    seen = []

    def listening(network, x, y):
        out = network(x)
        seen.append(out.dtype)
        return (out - y).square().mean()

    network, course = trained(loss=listening, precision="bfloat16")
    assert set(seen) == {torch.bfloat16}
    assert network.weight.dtype == torch.float32
    _, exact = trained()
    np.testing.assert_allclose(course.loss, exact.loss, rtol=0.03)
    assert course.loss.tolist() != exact.loss.tolist()


def test_prediction_is_steps_and_looks_times_what_a_few_take_and_leaves_the_network_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(streams.time, "perf_counter", lambda: clock[0])

    def taking(seconds):
        def slow(network, x, y):
            clock[0] += next(seconds)
            return (network(x) - y).square().mean()

        return slow

    network = network_of()
    first, later, look = 9.0, 2.0, 5.0
    seconds = streams.predict(
        network, taking(iter([first, later, later])), batch, HELD, steps=40, every=10, look=taking(iter([look]))
    )
    assert seconds == 40 * later + 5 * look
    assert torch.equal(network.weight, network_of().weight)
    assert network.weight.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize(("precision", "rtol"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_training_on_a_gpu_has_the_losses_of_one_on_the_cpu(precision, rtol, tmp_path):
    def there(step):
        return [part.cuda() for part in batch(step)]

    held = [part.cuda() for part in HELD]
    how = dict(batch=there, held=held, patience=4, precision=precision, checkpoint=tmp_path)
    network, course = trained(network_of().cuda(), **how)
    again, same = trained(network_of().cuda(), **how)
    assert network.weight.is_cuda
    np.testing.assert_allclose(course.loss, trained()[1].loss, rtol=rtol)
    assert course.loss.tolist() == same.loss.tolist() and torch.equal(network.weight, again.weight)


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


def test_no_patience_and_unknown_precision_are_refused():
    with pytest.raises(ValueError, match="patience must be None, or 1 or more, got 0"):
        trained(patience=0)
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'float16'"):
        trained(precision="float16")


def test_clip_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        trained(clip=0)


def test_run_that_was_out_of_hours_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    whole, expected = trained()
    clock = iter(range(0, 100_000, 61))
    monkeypatch.setattr(streams.time, "perf_counter", lambda: next(clock))
    _, course = trained(hours=0.2, checkpoint=tmp_path)
    assert 0 < course.taken < 40 and not course.diverged
    seen = np.isfinite(course.loss)
    assert seen.tolist() == (course.step <= course.taken).tolist()
    assert course.loss[seen].tolist() == expected.loss[seen].tolist()
    _, none = trained(hours=0, checkpoint=tmp_path)
    assert none.taken == course.taken
    resumed, course = trained(checkpoint=tmp_path)
    assert course.taken == 40
    assert course.loss.tolist() == expected.loss.tolist()
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("how", [dict(hours=-1), dict(hours=float("nan"))])
def test_hours_below_nothing_are_refused(how, tmp_path):
    with pytest.raises(ValueError, match="hours must be 0 or more"):
        trained(checkpoint=tmp_path, **how)


def test_hours_without_a_checkpoint_are_refused():
    with pytest.raises(ValueError, match="need a checkpoint"):
        trained(hours=1)
