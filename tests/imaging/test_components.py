import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging import components
from defectgen.imaging.components import Components


def patterns() -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    noise = [rng.random((60, 40)) < density for density in (0, 0.02, 0.4, 0.6, 0.97, 1)]
    spiral = np.zeros((41, 41), np.bool_)
    for i in range(0, 20, 4):
        cv2.rectangle(spiral.view(np.uint8), (i, i), (40 - i, 40 - i), 1)
    column = np.zeros((300, 3), np.bool_)
    column[5:290, 1] = True
    comb = np.zeros((30, 21), np.bool_)
    comb[:, ::2] = comb[-1] = True  # pieces that meet in the last row
    return [*noise, spiral, spiral[:, ::2], column, comb, np.ones((1, 1), np.bool_)]


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_strips_give_the_components_of_the_whole(connectivity: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for mask in patterns():
        monkeypatch.setattr(components, "_STRIP", rows * mask.shape[1])
        binary = np.ascontiguousarray(mask).view(np.uint8)
        count, expected, statistics, _ = cv2.connectedComponentsWithStats(binary, connectivity=connectivity)
        found = Components(mask, connectivity)
        assert len(found) == count
        labels = np.zeros(mask.shape, np.int64)
        for part, numbers in found:
            labels[part] = numbers
        np.testing.assert_array_equal(labels > 0, mask)
        pairs = np.unique(np.stack([labels[mask], expected[mask]]), axis=1)
        assert pairs.shape[1] == count - 1  # the same pixels belong together
        np.testing.assert_array_equal(found.boxes[pairs[0]], statistics[pairs[1], :4])
        np.testing.assert_array_equal(found.areas[pairs[0]], statistics[pairs[1], 4])
        if rows == 1000:
            np.testing.assert_array_equal(labels, expected)
