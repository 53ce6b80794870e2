"""What holds for all that is drawn: it depends on its generator alone, and what it cannot draw is refused by name."""

import math

import pytest
import torch

from ts_helpers.datasets.copying import adding, copying, variable_copying
from ts_helpers.datasets.pixels import images, permutation
from ts_helpers.datasets.recall import recall, two_waves
from ts_helpers.datasets.sines import COMPONENTS, random_components, sums_of_sines
from ts_helpers.datasets.teachers import smoothed_noise, truncated_gaussian
from ts_helpers.datasets.text import streams
from ts_helpers.datasets.warping import padded, warp, warped
from ts_helpers.timescales import chrono_init_, unknown_range_init_


def started(init, generator):
    bias = torch.empty(50)
    init(bias, 40, generator=generator)
    return [bias]


DRAWS = {
    "random_components": lambda g: [sums_of_sines(random_components(2, generator=g))],
    "smoothed_noise": lambda g: [smoothed_noise(20, 6, 2, generator=g)],
    "truncated_gaussian": lambda g: [truncated_gaussian(5, 0.5, 0.2, generator=g)],
    "recall": lambda g: [z[10:] for z in recall(10, 3, generator=g)],
    "two_waves": lambda g: two_waves(50, 3, generator=g),
    "warped": lambda g: warped(60, 4, 1, 7, generator=g),
    "padded": lambda g: padded(60, 4, 1, 7, generator=g),
    "copying": lambda g: copying(30, 4, generator=g),
    "variable_copying": lambda g: variable_copying(30, 4, generator=g),
    "adding": lambda g: adding(30, 4, generator=g),
    "permutation": lambda g: [permutation(64, generator=g)],
    "chrono_init_": lambda g: started(chrono_init_, g),
    "unknown_range_init_": lambda g: started(unknown_range_init_, g),
    "images": lambda g: [z for data in [images(generator=g)] for z in (data.train.x, data.valid.y, data.test.x)],
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_repeat_with_their_seed_and_go_on_with_their_generator(draw):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 3, 4)]
    for once, again, other, later in zip(*map(draw, [*generators, generators[0]]), strict=True):
        assert torch.equal(once, again)
        assert not torch.equal(once, other)
        assert not torch.equal(once, later)


SIZES = "n_steps and n_sequences must be 1 or more, got "
WINDOW = "window must be odd, above order and at most n_steps, got "
CUT = r"n must be 1 or more, mean in \(0, 1\) and sd positive, got "
SINES = "components must name a sine or more each, n_steps be 3 or more, got "
REFUSED = [
    (random_components, (0,), "n_sequences must be 1 or more, got n_sequences=0"),
    (smoothed_noise, (20, 0, 2), "n_sequences and features must be 1 or more, got n_sequences=0, features=2"),
    (smoothed_noise, (20, 6, 0), "n_sequences and features must be 1 or more, got n_sequences=6, features=0"),
    (smoothed_noise, (20, 6, 2, dict(window=6)), WINDOW + "window=6, order=3, n_steps=20"),
    (smoothed_noise, (20, 6, 2, dict(window=3)), WINDOW + "window=3, order=3, n_steps=20"),
    (smoothed_noise, (6, 6, 2), WINDOW + "window=7, order=3, n_steps=6"),
    (smoothed_noise, (0, 6, 2), WINDOW + "window=7, order=3, n_steps=0"),
    (truncated_gaussian, (0, 0.5, 0.2), CUT + "n=0, mean=0.5, sd=0.2"),
    (truncated_gaussian, (5, 0, 0.2), CUT + "n=5, mean=0, sd=0.2"),
    (truncated_gaussian, (5, 1.0, 0.2), CUT + "n=5, mean=1.0, sd=0.2"),
    (truncated_gaussian, (5, math.nan, 0.2), CUT + "n=5, mean=nan, sd=0.2"),
    (truncated_gaussian, (5, 0.5, 0), CUT + "n=5, mean=0.5, sd=0"),
    (truncated_gaussian, (5, 0.5, -0.1), CUT + "n=5, mean=0.5, sd=-0.1"),
    (truncated_gaussian, (5, 0.5, math.nan), CUT + "n=5, mean=0.5, sd=nan"),
    (recall, (3, 1), "n_back must be 4 or more, got n_back=3"),
    (recall, (-4, 1), "n_back must be 4 or more, got n_back=-4"),
    (recall, (10, 0), "n_sequences must be 1 or more, got n_sequences=0"),
    (two_waves, (0, 3), SIZES + "n_steps=0, n_sequences=3"),
    (two_waves, (50, 0), SIZES + "n_steps=50, n_sequences=0"),
    (two_waves, (50, 3, 0), r"dt must be in \(0, 0.05\), got dt=0"),
    (two_waves, (50, 3, 0.05), r"dt must be in \(0, 0.05\), got dt=0.05"),
    (two_waves, (50, 3, math.nan), r"dt must be in \(0, 0.05\), got dt=nan"),
    (warped, (0, 200, 1, 7), SIZES + "n_steps=0, n_sequences=200"),
    (warped, (60, 2, 0, 0), "least and most must be such that 1 <= least <= most, got least=0, most=0"),
    (warped, (60, 2, 5, 4), "least and most must be such that 1 <= least <= most, got least=5, most=4"),
    (padded, (60, -1, 1, 7), SIZES + "n_steps=60, n_sequences=-1"),
    (padded, (60, 2, 5, 4), "least and most must be such that 0 <= least <= most, got least=5, most=4"),
    (padded, (60, 2, -1, 4), "least and most must be such that 0 <= least <= most, got least=-1, most=4"),
    (copying, (0, 200), "T and n_sequences must be 1 or more, got T=0, n_sequences=200"),
    (copying, (30, 0), "T and n_sequences must be 1 or more, got T=30, n_sequences=0"),
    (variable_copying, (-4, 200), "T and n_sequences must be 1 or more, got T=-4, n_sequences=200"),
    (variable_copying, (30, -1), "T and n_sequences must be 1 or more, got T=30, n_sequences=-1"),
    (adding, (1, 200), "T must be 2 or more, got T=1"),
    (adding, (30, 0), "n_sequences must be 1 or more, got n_sequences=0"),
    (sums_of_sines, ((), 100, {}), SINES + r"\[\], n_steps=100"),
    (sums_of_sines, ((((1, 1),), ()), 100, {}), SINES + r"\[1, 0\], n_steps=100"),
    (sums_of_sines, (COMPONENTS, 2, {}), SINES + r"\[4, 5, 4, 5, 5\], n_steps=2"),
    (warp, (torch.ones(2, 2), torch.tensor([[3, 3], [2, 4]]), 6, {}), "lengths must last for 6 steps, got 5"),
    (streams, (torch.arange(6), 2, 3, {}), "codes must have 7 or more symbols for batch=2, length=3, got 6"),
    (streams, (torch.arange(0), 2, 3, {}), "codes must have 7 or more symbols for batch=2, length=3, got 0"),
    (streams, (torch.arange(9), 0, 3, {}), "batch and length must be 1 or more, got batch=0, length=3"),
    (streams, (torch.arange(9), 2, -1, {}), "batch and length must be 1 or more, got batch=2, length=-1"),
]


@pytest.mark.parametrize(("draw", "arguments", "message"), REFUSED)
def test_what_cannot_be_drawn_is_refused_by_name_rule_and_value(draw, arguments, message):
    *arguments, last = arguments
    how = last if last == {} else dict(generator=torch.Generator()) | (last if isinstance(last, dict) else {})
    with pytest.raises(ValueError, match=f"^{message}$"):
        draw(*arguments, *([] if isinstance(last, dict) else [last]), **how)
