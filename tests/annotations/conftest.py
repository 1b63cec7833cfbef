"""A folder with an image, and what annotations say about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectgen.folders import read_defects
from defectgen.imaging.mask_files import read_masks
from defectgen.imaging.windows import BoolArray
from defectgen.marking import Marking

Masks = dict[tuple[str, str], BoolArray]
SIZE = (30, 40)


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Writes an image, of 40x30 pixels unless told."""

    def write(path: Path, size: tuple[int, int] = SIZE, **settings: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(str(path))).integers(60, 200, size).astype(np.uint8)
        Image.fromarray(pixels).save(path, **settings)
        return path

    return write


@pytest.fixture
def masks_of() -> Callable[..., tuple[Masks, list[str]]]:
    """The masks of the defects in a folder by the image's name and the category, skipped files, and warnings."""

    def read(folder: Path, annotations: Path, **options: Any) -> tuple[Masks, list[str]]:
        catalog = read_defects(folder, marking=Marking(annotations), **options)
        known = [image for image in catalog.images if image.mask is not None]
        masks = {(image.path.name, image.category): read_masks(image.mask) for image in known if image.mask}
        assert len(masks) == len(catalog.images)
        return masks, [*(f"skipped {each.path.name}: {each.reason}" for each in catalog.skipped), *catalog.warnings]

    return read


@pytest.fixture
def save() -> Callable[[Path, Any], Path]:
    """Writes text, or JSON."""

    def write(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write
