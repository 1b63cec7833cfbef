"""The device that tensors are on, and random generators for PyTorch."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from defectgen import ranks
from defectgen.errors import NoDeviceError, UsageError


def resolve(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names. `auto` is CUDA if available, else the CPU.

    Of several ranks on a machine, each has the CUDA device of its LOCAL_RANK; if there are fewer, they share them.

    Raises:
        UsageError: any other name, or one CUDA device for several ranks.
        NoDeviceError: the named CUDA device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    if device.type == "cuda" and ranks.count() > 1:
        place = ranks.place()
        if ":" not in name:
            device = torch.device("cuda", place.local % torch.cuda.device_count())
        elif place.local_count > 1:
            raise UsageError(f"--device {name}: torchrun gives each process its own device; use --device cuda")
        torch.cuda.set_device(device)
    return device


def check_unshared(device: torch.device) -> None:
    """Training exchanges gradients with `nccl`, which takes one rank of each CUDA device.

    Raises:
        NoDeviceError: there are more ranks on this machine than CUDA devices.
    """
    ranked = ranks.place().local_count
    if device.type == "cuda" and ranked > (found := torch.cuda.device_count()):
        raise NoDeviceError(
            f"--device {device.type}: {ranked} processes train on a machine with {found} CUDA devices; start as many as"
            f" there are (torchrun --nproc-per-node {found}), or use --device cpu"
        )


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, for the next ones, if it is glibc. It affects the whole process.

    Otherwise it gives maps of some megabytes back to the system at once, which then clears each page anew: up to a
    tenth of the time of a step on the CPU.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((-1, 2**30), (-3, 2**25)):  # M_TRIM_THRESHOLD, and the greatest M_MMAP_THRESHOLD
            library.mallopt(parameter, value)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on one CPU thread within the block: sums in one order, whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def torch_rng(*key: int) -> torch.Generator:
    """As `seeding.numpy_rng`, for PyTorch. Always on the CPU, so that the numbers do not depend on the device."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
