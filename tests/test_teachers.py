import numpy as np
import pytest
import torch

from ts_helpers.datasets.teachers import smoothed_noise, truncated_gaussian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smoothed(n_steps=20, n_sequences=6, features=2, *, seed=0, **how):
    return smoothed_noise(n_steps, n_sequences, features, generator=generator(seed), **how)


@pytest.mark.parametrize(("window", "order"), [(7, 3), (5, 2), (3, 0), (1, 0)])
def test_smoothed_noise_is_the_middle_of_a_polynomial_fitted_to_each_window(window, order):
    x = smoothed(window=window, order=order).numpy()
    assert (x.shape, x.dtype) == ((20, 6, 2), np.float32)
    noise, half = torch.rand(20, 6, 2, generator=generator()).numpy().astype(float), window // 2
    for t in range(half, 20 - half):
        for s in range(6):
            for f in range(2):
                near = np.polyfit(np.arange(-half, half + 1), noise[t - half : t + half + 1, s, f], order)
                assert x[t, s, f] == pytest.approx(near[-1], abs=1e-5)


def test_smoothed_noise_has_the_stated_mean_and_range():
    x = smoothed(n_sequences=20_000)
    np.testing.assert_allclose(x.double().mean(1).numpy(), 0.5, atol=0.01)  # 5 standard errors, at every step
    outside = ((x < 0) | (x > 1)).double().mean().item()
    assert 0 < outside < 0.05  # a few


def test_smoothed_noise_of_one_window_is_one_polynomial():
    x = smoothed(n_steps=7).numpy()
    assert np.abs(np.diff(x, 4, axis=0)).max() < 1e-5  # of order 3: fourth differences are 0


def drawn(n=5, mean=0.5, sd=0.2, seed=0):
    return truncated_gaussian(n, mean, sd, generator=generator(seed))


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("sd", [0.1, 0.3, 2.0])
def test_truncated_gaussian_has_its_length_and_keeps_its_bounds(n, sd):
    made = drawn(n, sd=sd)
    assert made.shape == (n,)
    assert 0 < made.min() <= made.max() < 1


@pytest.mark.parametrize(("sd", "cut"), [(0.1, 0.10), (0.2, 0.19), (0.3, 0.24)])
def test_truncated_gaussian_has_the_stated_deviation(sd, cut):
    made = drawn(200_000, sd=sd).double()
    assert made.mean().item() == pytest.approx(0.5, abs=0.003)
    assert round(made.std().item(), 2) == cut


@pytest.mark.parametrize("mean", [0.05, 0.9])
def test_truncated_gaussian_off_the_middle_is_that_gaussian_cut(mean):
    made = drawn(200_000, mean, 0.3).double().numpy()
    grid = np.linspace(0, 1, 10_001)
    density = np.exp(-(((grid - mean) / 0.3) ** 2) / 2)
    assert made.mean() == pytest.approx((grid * density).sum() / density.sum(), abs=0.003)
