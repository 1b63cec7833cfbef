"""The device that tensors are on, and random generators for PyTorch."""

import numpy as np
import torch

from defectgen.errors import NoDeviceError, UsageError

RANK = 0
"""The index of this process among those of a run."""


def resolve(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names. `auto` is CUDA if available, else the CPU.

    Raises:
        UsageError: any other name.
        NoDeviceError: the named CUDA device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise NoDeviceError(
            f"--device {name}: PyTorch finds {torch.cuda.device_count()} CUDA devices; use --device auto or cpu"
        )
    return device


def torch_rng(*key: int) -> torch.Generator:
    """As `seeding.numpy_rng`, for PyTorch. Always on the CPU, so that the numbers do not depend on the device."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
