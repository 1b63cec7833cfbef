"""Random generators for NumPy. This module does not import PyTorch."""

import numpy as np


def numpy_rng(*key: int) -> np.random.Generator:
    """A generator determined by `key` alone: (seed, rank, step) for a step, (seed, index, attempt) for a sample."""
    return np.random.default_rng(np.random.SeedSequence(key))
