"""Random generators for paths of seeds."""

import numpy as np
import torch


def generator_of(*seed: int) -> torch.Generator:
    """Return a generator for a path of seeds, independent of those of other paths."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
