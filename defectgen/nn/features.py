"""Feature networks."""

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from defectgen.errors import WeightsError

Features = NDArray[np.float64]


class Extractor(Protocol):
    """Windows [N, C, 64, 64] in [-1, 1] to features [N, D]."""

    def __call__(self, windows: NDArray[np.float32]) -> Features: ...


_CALLS: dict[str, dict[str, Any]] = {
    "inception": {"return_features": True},
    "lpips": {"resize_images": False, "return_lpips": True},
}
"""The networks that can be given, and how each is called: the TorchScript files of the StyleGAN authors' metrics."""


def extractor(kind: str, file: Path, device: torch.device) -> Extractor:
    """A feature network from the user's file.

    Raises:
        WeightsError: a file that is missing, or is no such network.
    """
    if not file.is_file():
        raise WeightsError(f"--features {kind}={file}: no such file")
    advice = "give the TorchScript file that the StyleGAN metrics use (README.md, evaluate)"
    try:
        with warnings.catch_warnings():  # PyTorch would have torch.export, but these networks are published so
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsError(f"--features {kind}={file}: not a TorchScript network; {advice}") from error

    @torch.no_grad()
    def extract(windows: NDArray[np.float32]) -> Features:
        rows = []
        for start in range(0, len(windows), 32):
            x = torch.from_numpy(windows[start : start + 32]).to(device)
            x = ((x + 1) * 127.5).round().clamp(0, 255).expand(-1, 3, -1, -1)
            try:
                rows.append(network(x.to(torch.uint8) if kind == "inception" else x, **_CALLS[kind]))
            except RuntimeError as error:
                raise WeightsError(f"--features {kind}={file}: cannot be called as {kind}; {advice}") from error
        return np.asarray(torch.cat(rows).double().cpu().numpy())

    return extract
