"""Where random numbers come from, without PyTorch."""

import numpy as np


def numpy_rng(*key: int) -> np.random.Generator:
    """A generator that `key` alone decides: (seed, rank, step) for a step, (seed, index, attempt) for a sample."""
    return np.random.default_rng(np.random.SeedSequence(key))
