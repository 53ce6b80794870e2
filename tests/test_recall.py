import math

import numpy as np
import pytest
import torch
from scipy.signal.windows import dpss

from ts_helpers.datasets.recall import recall, two_waves


def recalled(n_back=10, n_sequences=3, seed=0):
    return recall(n_back, n_sequences, generator=torch.Generator().manual_seed(seed))


def waves(n_steps=50, n_sequences=3, dt=0.01, seed=0):
    return two_waves(n_steps, n_sequences, dt, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_back", [4, 5, 10, 20, 30, 40, 50, 7, 93])
def test_recall_asks_for_the_signal_a_while_ago(n_back):
    x, y = recalled(n_back)
    assert x.shape == y.shape == (5 * n_back // 2, 3, 1)
    assert x.dtype == y.dtype == torch.float32
    assert torch.equal(y[n_back:], x[:-n_back])
    assert bool(y[:n_back].isnan().all())
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("times", [5, 10])
def test_recall_differs_in_nothing_but_the_step(times):
    torch.testing.assert_close(recalled(4 * times)[0][::times], recalled(4)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_back", [4, 10])
def test_recall_scores_as_stated_by_chance(n_back):
    x, y = (t[n_back:, :, 0].double().numpy() for t in recalled(n_back, 10_000))
    for t in range(len(x)):
        slope, offset = np.polyfit(x[t], y[t], 1)
        assert (y[t] ** 2).mean() == pytest.approx(1, abs=0.05)  # predicting 0; also the variance: the mean is 0
        assert ((slope * x[t] + offset - y[t]) ** 2).mean() == pytest.approx(1, abs=0.05)
        assert np.corrcoef(x[t], y[t])[0, 1] == pytest.approx(0, abs=0.04)
        assert y[t].mean() == pytest.approx(0, abs=0.04)


def test_recall_has_the_stated_autocorrelation():
    x = recalled(10, 10_000)[0][..., 0].double().numpy()
    for steps in range(1, len(x)):
        lag = steps * 0.1 / 10
        expected = math.sin(40 * math.pi * lag) / (40 * math.pi * lag)
        assert (x[0] * x[steps]).mean() == pytest.approx(expected, abs=0.05)


def beyond_20_hz(x, n_back):
    """The share of the energy of windows (time, sequences) that signals of up to 20 Hz cannot have.

    They are sums of Slepian sequences, of which 2 x 20 Hz x 0.25 s = 10 and a few more hold all their energy.
    """
    band = dpss(len(x), 20 * 0.1 / n_back * len(x), Kmax=20)  # orthonormal rows
    return ((x - band.T @ (band @ x)) ** 2).sum() / (x**2).sum()


def test_recall_has_no_power_above_20_hz():
    x = recalled(50, 300)[0][..., 0].double().numpy()
    assert beyond_20_hz(x, 50) < 1e-11
    phases = np.linspace(0, 2 * np.pi, 8)
    for hertz, least in ((21, 1e-9), (25, 1e-4), (60, 0.9)):  # such waves would be noticed
        wave = np.sin(2 * np.pi * hertz * np.arange(125)[:, None] * 0.002 + phases)
        assert beyond_20_hz(wave, 50) > least


def test_two_waves_ask_for_the_next_step():
    x, y = waves()
    assert x.shape == y.shape == (50, 3, 1)
    assert torch.equal(x[1:], y[:-1])


def test_two_waves_equal_sines_of_10_and_2_hz_with_phases_of_their_own():
    x, t = waves(n_steps=100, n_sequences=20)[0][..., 0].double().numpy(), np.arange(100) * 0.01
    found = []
    for wave in x.T:
        parts = [2 * np.mean(wave * np.exp(-2j * np.pi * hertz * t)) for hertz in (10, 2)]  # whole cycles in a second
        np.testing.assert_allclose(np.abs(parts), 0.5, atol=1e-5)
        angles = [np.angle(part) + np.pi / 2 for part in parts]
        made = sum(np.sin(2 * np.pi * hertz * t + angle) / 2 for hertz, angle in zip((10, 2), angles, strict=True))
        np.testing.assert_allclose(wave, made, atol=1e-5)
        found.append(angles)
    assert len(np.unique(np.round(np.mod(found, 2 * np.pi), 4))) == 40


@pytest.mark.parametrize("dt", [0.01, 0.03])
def test_two_waves_score_as_stated(dt):
    x, y = waves(n_steps=10, n_sequences=20_000, dt=dt)
    repeated = (1 - math.cos(20 * math.pi * dt) + 1 - math.cos(4 * math.pi * dt)) / 4
    assert y.square().mean().item() == pytest.approx(1 / 4, rel=0.02)
    assert (x - y).square().mean().item() == pytest.approx(repeated, rel=0.02)
    if dt == 0.01:
        assert round(repeated, 2) == 0.05
