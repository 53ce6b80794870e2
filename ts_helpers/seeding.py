"""Random generators for paths of seeds."""

from numbers import Integral
from reprlib import repr as short

import numpy as np
import torch


def generator_of(*seed: int) -> torch.Generator:
    """Return a generator for a path of seeds, whole numbers from 0 on, independent of those of other paths.

    A path that ends in 0 is that without it, and one with a seed from 2^32 on that with its digits of 32 bits.
    """
    if not all(isinstance(each, Integral) and not isinstance(each, bool) and each >= 0 for each in seed):
        raise ValueError(f"seed must be whole numbers, 0 or more, got {short(seed)}")
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
