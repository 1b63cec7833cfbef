"""Where tensors live, and where their random numbers come from."""

import numpy as np
import torch

from defectgen.errors import NoDeviceError, UsageError

RANK = 0
"""Which of the processes of one run this is."""


def resolve(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: another name. NoDeviceError: CUDA was asked for by name and is not there.
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
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use --device auto or cpu"
        )
    return device


def torch_rng(*key: int) -> torch.Generator:
    """As `seeding.numpy_rng`, for PyTorch; always on the CPU, so that every device sees the same numbers."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
