"""What holds for all that is drawn: it depends on its generator alone, and what it cannot draw is refused by name."""

import math
import os
import re

import pytest
import torch

from ts_helpers.datasets.copying import adding, copying, memoryless, variable_copying
from ts_helpers.datasets.pixels import Part, images, permutation, some
from ts_helpers.datasets.recall import recall, two_waves
from ts_helpers.datasets.ring import ring_weights
from ts_helpers.datasets.sines import COMPONENTS, load_sequences, random_components, sums_of_sines
from ts_helpers.datasets.teachers import smoothed_noise, truncated_gaussian
from ts_helpers.datasets.text import characters, streams, words
from ts_helpers.datasets.warping import memoryless_warped, padded, warp, warped
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
NOISE = "n_steps and n_sequences and features must be 1 or more, got n_steps="
WINDOW = "window must be odd, above order and at most n_steps, got "
MEAN, SD = (
    rf"{name} must be in {rule}, got {name}=" for name, rule in (("mean", r"\[0.001, 0.999\]"), ("sd", r"\(0, 100\]"))
)
SINES = "components must name a sine or more each, by finite cycles and amplitude, got "
LETTERS = r"letters and lengths, whole numbers from 1 on, must be \(letters, sequences\), got "
HUGE = r"must be 2\^28 or less, got "
SHORT = repr(10**400)[:18] + "..." + "0" * 19  # as reprlib writes it
REFUSED = [
    (random_components, (0,), "n_sequences must be 1 or more, got n_sequences=0"),
    (smoothed_noise, (20, 0, 2), NOISE + "20, n_sequences=0, features=2"),
    (smoothed_noise, (20, 6, 0), NOISE + "20, n_sequences=6, features=0"),
    (smoothed_noise, (20, 6, 2, dict(window=6)), WINDOW + "window=6, order=3, n_steps=20"),
    (smoothed_noise, (20, 6, 2, dict(window=3)), WINDOW + "window=3, order=3, n_steps=20"),
    (smoothed_noise, (6, 6, 2), WINDOW + "window=7, order=3, n_steps=6"),
    (smoothed_noise, (0, 6, 2), NOISE + "0, n_sequences=6, features=2"),
    (truncated_gaussian, (0, 0.5, 0.2), "n must be 1 or more, got n=0"),
    (truncated_gaussian, (5, 0, 0.2), MEAN + "0"),
    (truncated_gaussian, (5, 1.0, 0.2), MEAN + "1.0"),
    (truncated_gaussian, (5, math.nan, 0.2), MEAN + "nan"),
    (truncated_gaussian, (5, 0.5, 0), SD + "0"),
    (truncated_gaussian, (5, 0.5, -0.1), SD + "-0.1"),
    (truncated_gaussian, (5, 0.5, math.nan), SD + "nan"),
    (truncated_gaussian, (5, 0.5, 1e30), SD + r"1e\+30"),  # would be drawn for ever
    (recall, (3, 1), "n_back must be 4 or more, got n_back=3"),
    (recall, (-4, 1), "n_back must be 4 or more, got n_back=-4"),
    (recall, (10, 0), "n_back and n_sequences must be 1 or more, got n_back=10, n_sequences=0"),
    (two_waves, (0, 3), SIZES + "n_steps=0, n_sequences=3"),
    (two_waves, (50, 0), SIZES + "n_steps=50, n_sequences=0"),
    (two_waves, (50, 3, 0), r"dt must be in \(0, 0.05\), got dt=0"),
    (two_waves, (50, 3, 0.05), r"dt must be in \(0, 0.05\), got dt=0.05"),
    (two_waves, (50, 3, math.nan), r"dt must be in \(0, 0.05\), got dt=nan"),
    (warped, (0, 200, 1, 7), SIZES + "n_steps=0, n_sequences=200"),
    (warped, (60, 2, 0, 0), "least must be 1 or more, got least=0"),
    (warped, (60, 2, 5, 4), "most must be 5 or more, got most=4"),
    (padded, (60, -1, 1, 7), SIZES + "n_steps=60, n_sequences=-1"),
    (padded, (60, 2, 5, 4), "most must be 5 or more, got most=4"),
    (padded, (60, 2, -1, 4), "least must be 0 or more, got least=-1"),
    (copying, (0, 200), "T and n_sequences must be 1 or more, got T=0, n_sequences=200"),
    (copying, (30, 0), "T and n_sequences must be 1 or more, got T=30, n_sequences=0"),
    (variable_copying, (-4, 200), "T and n_sequences must be 1 or more, got T=-4, n_sequences=200"),
    (variable_copying, (30, -1), "T and n_sequences must be 1 or more, got T=30, n_sequences=-1"),
    (adding, (1, 200), "T must be 2 or more, got T=1"),
    (adding, (30, 0), "T and n_sequences must be 1 or more, got T=30, n_sequences=0"),
    (sums_of_sines, ((), 100, {}), SINES + r"\(\)"),
    (sums_of_sines, ((((1, 1),), ()), 100, {}), SINES + r"\(\(\(1, 1\),\), \(\)\)"),
    (sums_of_sines, (COMPONENTS, 2, {}), "n_steps must be 3 or more, got n_steps=2"),
    (sums_of_sines, ([[(1e308, 1)]], 9, {}), SINES + r"\[\[\(1e\+308, 1\)\]\]"),
    (sums_of_sines, ([1], 9, {}), SINES + r"\[1\]"),
    (warp, (torch.ones(2, 2), torch.tensor([[3, 3], [2, 4]]), 6, {}), "lengths must last for 6 steps, got 5"),
    (warp, (torch.ones(2, 2), torch.tensor([[-3, 3], [9, 4]]), 6, {}), LETTERS + r"\(2, 2\) and \(2, 2\)"),
    (warp, (torch.ones(2, 2), torch.ones(2, 3), 6, {}), LETTERS + r"\(2, 2\) and \(2, 3\)"),
    (streams, (torch.arange(40).view(20, 2), 2, 3, {}), r"codes must have shape \(symbols,\), got \(20, 2\)"),
    (streams, (torch.arange(6), 2, 3, {}), "codes must have 7 or more symbols for batch=2, length=3, got 6"),
    (streams, (torch.arange(0), 2, 3, {}), "codes must have 7 or more symbols for batch=2, length=3, got 0"),
    (streams, (torch.arange(9), 0, 3, {}), "batch and length must be 1 or more, got batch=0, length=3"),
    (streams, (torch.arange(9), 2, -1, {}), "batch and length must be 1 or more, got batch=2, length=-1"),
    (memoryless, (0, {}), "n_steps must be 1 or more, got n_steps=0"),
    (memoryless_warped, (60, 1, 2**63, {}), f"most {HUGE}most=9223372036854775808"),  # would be summed for ever
    (ring_weights, (1e308, {}), r"w_s must be in \[-1e6, 1e6\], got w_s=1e\+308"),
    (some, (Part(torch.ones(4, 9, 1), torch.arange(9)), -1, {}), "n must be 1 or more, got n=-1"),
    (adding, (10**400, 1), f"T {HUGE}T={SHORT}"),
    (copying, (2**20, 2**20), f"T times n_sequences {HUGE}T=1048576, n_sequences=1048576"),
    *(
        (permutation, (n,), f"n_pixels must be a whole number, got {re.escape(repr(n))}")
        for n in (2.0, True, "3", None, [3])
    ),
    *(
        (two_waves, (5, 2, dt), f"dt must be a number, got {re.escape(repr(dt))}")
        for dt in (None, "0.01", True, [0.01])
    ),
    *(
        (draw, (9, 2, dict(generator=None)), "generator must be a torch.Generator, got None")
        for draw in (copying, recall)
    ),
    (streams, ("text", 2, 3, {}), "codes must be a Tensor with numbers, got 'text'"),
    (streams, (torch.arange(9, device="meta"), 2, 3, {}), "codes must be a .* with numbers, got tensor.*"),
    *((load_sequences, (path, {}), f"path must be a path, got {path!r}") for path in (0, True, None)),  # no descriptor
    *((read, (3, {}), "source must be a .*path, got 3") for read in (characters, words)),
]


@pytest.mark.parametrize(("draw", "arguments", "message"), REFUSED)
def test_what_cannot_be_drawn_is_refused_by_name_rule_and_value(draw, arguments, message):
    *arguments, last = arguments
    how = last if last == {} else dict(generator=torch.Generator()) | (last if isinstance(last, dict) else {})
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        draw(*arguments, *([] if isinstance(last, dict) else [last]), **how)


@pytest.mark.parametrize("read", [load_sequences, characters, words])
def test_pipe_is_no_file_of_data_and_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"cannot read .* from .*pipe: it is no file"):
        read(tmp_path / "pipe")
