"""Images of a surface whose defects are easy: black discs, and bright bars."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import encode_png


def surface(rng: np.random.Generator, size: int = 100) -> NDArray[np.uint8]:
    """No two are alike: soft noise of several scales."""
    noise = sum(cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), s) * s * 8 for s in (1.0, 4.0, 16.0))
    return np.clip(np.asarray(noise) + rng.uniform(100, 160), 40, 215).astype(np.uint8)


def defective(rng: np.random.Generator, category: str, size: int = 100) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels, mask = surface(rng, size), np.zeros((size, size), np.uint8)
    x, y = (int(v) for v in rng.integers(25, size - 25, 2))
    if category == "disc":
        axes = int(rng.integers(6, 12)), int(rng.integers(6, 12))
        cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    else:
        cv2.line(mask, (x - 14, y - int(rng.integers(-8, 8))), (x + 14, y + int(rng.integers(-8, 8))), 255, 5)
    pixels[mask > 0] = 15 if category == "disc" else 240
    return pixels, mask


def fill(root: Path, rng: np.random.Generator, *, defects: int, normals: int) -> Path:
    """A folder of real photographs."""
    for category in ("bar", "disc"):
        for i in range(defects):
            pixels, mask = defective(rng, category)
            for name, image in (("defects", pixels), ("masks", mask)):
                path = root / name / category / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(image))
    for i in range(normals):
        path = root / "normals" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(surface(rng)))
    return root


Draw = Callable[[int, str], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """A photograph with a defect of a category, or a "normal", and its mask; of a seed."""
    return lambda seed, category: (
        (surface(np.random.default_rng(seed)), np.zeros((100, 100), np.uint8))
        if category == "normal"
        else defective(np.random.default_rng(seed), category)
    )


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("real"), np.random.default_rng(0), defects=10, normals=12)


@pytest.fixture(scope="session")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("held"), np.random.default_rng(1), defects=5, normals=6)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mixed precision on the CPU, whichever it is: for comparisons that need more digits than bfloat16 has."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False, raising=False)
