import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging import components
from defectgen.imaging.components import Components
from defectgen.inspection.contours import contours


def blobs(seed: int, shape: tuple[int, int] = (120, 160)) -> NDArray[np.bool_]:
    """Defects of all sizes, some with holes, some inside others, some of a pixel."""
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 3) > 0.08
    mask[40:80, 40:80] = False
    mask[50:70, 50:70] = True
    mask[55:65, 55:65] = False
    mask[58:61, 58:61] = True
    return np.asarray(mask | (rng.random(shape) > 0.995), np.bool_)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("strip", [2**24, 160 * 7])
def test_contours_draw_each_defect_again(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_STRIP", strip)
    for seed in range(4):
        mask = blobs(seed)
        parts = Components(mask)
        found = contours(mask, parts)
        assert len(found) == len(parts) - 1 > 20
        drawn = np.zeros(mask.shape, np.uint8)
        for polygons, (x, y, width, height), area in zip(found, parts.boxes[1:], parts.areas[1:], strict=True):
            alone = cv2.fillPoly(np.zeros_like(drawn), [np.array(each) for each in polygons], 1)
            assert alone.sum() == pytest.approx(area, rel=0.025)
            assert cv2.boundingRect(alone)[:2] == pytest.approx((x, y), abs=1)
            assert cv2.boundingRect(alone)[2:] == pytest.approx((width, height), abs=1)
            drawn |= np.asarray(alone, np.uint8)
        assert iou(drawn > 0, mask) >= 0.98


def test_contours_have_few_points() -> None:
    disc = cv2.circle(np.zeros((400, 400), np.uint8), (200, 200), 150, 1, -1) > 0
    ((outline,),) = contours(disc, Components(disc))
    ((steps,), _) = cv2.findContours(disc.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    assert len(outline) < 0.7 * len(steps)
    assert max(abs(cv2.pointPolygonTest(np.array(outline), each.tolist(), True)) for each in steps[:, 0]) <= 0.5


def test_no_defect_has_no_contour() -> None:
    empty = np.zeros((5, 5), np.bool_)
    assert contours(empty, Components(empty)) == []
