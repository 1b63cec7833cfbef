from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging.images import DecodedImage
from defectgen.inspection import inspector
from defectgen.inspection.inspector import Criteria, Finding, find
from defectgen.inspection.thumbnails import SIDE, Shrunk


def inspected(shape: tuple[int, ...], *, depth: int = 8, at: tuple[int, int] | None = None, size: int = 12) -> Finding:
    """A gray surface with a dark defect at (x, y), compared with itself without the defect."""
    rng = np.random.default_rng(0)
    whole = np.clip(130 + rng.normal(0, 3, shape), 0, 255)
    broken = whole.copy()
    if at is not None:
        broken[at[1] : at[1] + size, at[0] : at[0] + size] = 20
    before: Any = broken.astype(np.uint8) if depth == 8 else (broken * 40).astype(np.uint16)
    after: Any = whole.astype(np.uint8) if depth == 8 else (whole * 40).astype(np.uint16)
    return find(Path("a.png"), DecodedImage(before), after, Criteria(0.4))


def decoded(finding: Finding) -> NDArray[Any]:
    """The thumbnails as RGB."""
    pixels = cv2.imdecode(np.frombuffer(finding.thumbnails, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(pixels)[..., ::-1].astype(int)


def columns(strip: NDArray[Any]) -> list[NDArray[Any]]:
    """Image, outlines, defect-free version and score map."""
    width = (strip.shape[1] - 12) // 4
    return [strip[:, i * (width + 4) : i * (width + 4) + width] for i in range(4)]


def red(pixels: NDArray[Any]) -> int:
    return int((pixels[..., 0] - pixels[..., 1:].max(axis=2) > 80).sum())


@pytest.mark.parametrize("depth", [8, 16])
def test_a_strip_shows_the_defect_its_outline_the_repair_and_the_scores(depth: int) -> None:
    image, outlined, repaired, heat = columns(decoded(inspected((120, 100), depth=depth, at=(40, 30))))
    assert image.shape == (240, 200, 3)  # enlarged
    there = slice(64, 80), slice(84, 100)
    assert image[there].max() < 60 < repaired[there].min()
    assert red(outlined) > 100 > red(image) == red(repaired)
    assert heat[there].min(axis=(0, 1))[0] > 200
    assert heat[150:].max() < 60
    assert abs(image - repaired)[150:].max() < 40


def test_a_flawless_image_has_no_outline() -> None:
    image, outlined, _, heat = columns(decoded(inspected((100, 100))))
    assert red(outlined) == 0
    assert heat.max() < 60
    assert np.abs(image - outlined).max() < 40


def test_a_large_image_shows_its_defect_at_a_readable_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    for whole in (2**24, 2**18):  # the scores as one map, and in strips
        monkeypatch.setattr(inspector, "_WHOLE", whole)
        strip = decoded(inspected((900, 1200), at=(1000, 700)))
        assert strip.shape == (192 + 4 + 256, 4 * SIDE + 12, 3)
        image, outlined, _, heat = (each[196:] for each in columns(strip))
        assert (image.max(axis=2) < 60).sum() == pytest.approx(24 * 24, rel=0.15)  # twice as large as it is
        assert red(outlined) > 100
        assert (heat[..., 0] > 200).sum() > 24 * 24
        assert red(columns(strip)[1][:192]) > 4


@pytest.mark.parametrize("at", [(0, 0), (2990, 4), (1500, 2)])
@pytest.mark.parametrize("shape", [(20, 3000), (20, 3000, 3), (20, 3000, 2), (20, 3000, 4)])
def test_a_line_scan_is_shown_whole_and_where_its_defect_is(shape: tuple[int, ...], at: tuple[int, int]) -> None:
    strip = decoded(inspected(shape, at=at))
    assert strip.shape[1] == 4 * SIDE + 12
    assert red(columns(strip)[1]) > 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (5000, 3), (257, 256), (30, 70_000)])
@pytest.mark.parametrize("depth", [8, 16])
def test_any_shape_has_a_small_strip(shape: tuple[int, int], depth: int) -> None:
    strip = decoded(inspected(shape, depth=depth, at=(0, 0)))
    assert strip.shape[1] <= 4 * SIDE + 12
    assert strip.shape[0] <= 2 * SIDE + 4


def test_a_map_in_strips_is_scaled_down_by_its_greatest_values() -> None:
    values = np.random.default_rng(0).random((700, 500)).astype(np.float32)
    at_once, in_strips = Shrunk(700, 500), Shrunk(700, 500)
    at_once.add(slice(0, 700), values)
    for top in range(0, 700, 37):
        in_strips.add(slice(top, min(top + 37, 700)), values[top : top + 37])
    assert at_once.values.shape == (SIDE, round(500 * SIDE / 700))
    np.testing.assert_array_equal(at_once.values, in_strips.values)
    assert at_once.values.max() == values.max()
    lone = np.zeros((700, 500), np.bool_)
    lone[333, 444] = True
    shrunk = Shrunk(700, 500)
    shrunk.add(slice(0, None), lone)
    assert shrunk.values.sum() == 1
