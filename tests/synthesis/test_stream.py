import numpy as np
import pytest

from defectgen.imaging.images import DecodedImage
from defectgen.synthesis.stream import visible


@pytest.mark.parametrize(("part", "change", "seen"), [(0.3, 11, True), (0.2, 60, False), (1.0, 9, False)])
def test_a_defect_is_visible_if_a_quarter_of_it_is(part: float, change: int, seen: bool) -> None:
    """A break with a faint surface and a dark rim is: its mask holds both."""
    photograph = DecodedImage(np.full((40, 40), 120, np.uint8))
    mask = np.zeros((40, 40), np.bool_)
    mask[10:30, 10:30] = True
    after = photograph.pixels.copy()
    after[10:30, 10 : 10 + round(20 * part)] -= np.uint8(change)
    assert visible(photograph, after, mask) is seen
    assert not visible(photograph, after, np.ones_like(mask))
