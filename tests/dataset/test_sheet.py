from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectgen.dataset import sheet
from defectgen.dataset.manifest import Row
from defectgen.imaging.images import encode_png


def red(drawn: NDArray[np.uint8]) -> int:
    """Pixels of the mask's outline."""
    return int((drawn == sheet._RED).all(axis=2).sum())


def put(folder: Path, boxes: list[tuple[int, int, int, int]], shape: tuple[int, int]) -> Row:
    mask = np.zeros(shape, np.uint8)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = 255
    (folder / "image.png").write_bytes(encode_png(np.full(shape, 120, np.uint8)))
    (folder / "mask.png").write_bytes(encode_png(mask))
    return Row(index=0, category="crack", image="image.png", mask="mask.png")


def test_a_defect_anywhere_is_shown_with_its_outline(tmp_path: Path) -> None:
    for box in ((0, 0, 6, 6), (290, 90, 10, 10), (150, 50, 30, 4)):
        assert red(sheet.draw(tmp_path, [put(tmp_path, [box], (100, 300))])) > 20


def test_the_largest_of_defects_too_far_apart_is_shown(tmp_path: Path) -> None:
    row = put(tmp_path, [(10, 40, 8, 8), (280, 20, 12, 12)], (100, 300))
    drawn = sheet.draw(tmp_path, [row])
    assert red(drawn) > 20
