import numpy as np
import pytest

from defectgen.imaging.images import DecodedImage
from defectgen.synthesis.stream import visible, visible_pieces


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


@pytest.mark.parametrize("channels", [1, 3])
def test_pieces_that_nobody_sees_are_not_labelled(channels: int) -> None:
    """Of two cracks, one faint, and other grain: 16 bits, where 10 of 255 gray levels are 2570."""
    pixels = np.full((40, 40, channels), 30000, np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 65535
    photograph = DecodedImage(pixels if channels == 3 else pixels[..., 0], limits=(0, 65535))
    mask = np.zeros((40, 40), np.bool_)
    for piece in ((slice(5, 8), slice(5, 35)), (slice(20, 23), slice(5, 35)), (30, 30), (slice(34, 38), slice(5, 35))):
        mask[piece] = True
    after = photograph.pixels.copy()
    after[5:8, 5:35] -= 2000
    after[20:23, 5:15] -= 9000
    after[30, 30] -= 29000
    after[34:38:2, 5:35:2] -= 6000
    after[35:38:2, 6:35:2] += 6000
    expected = mask.copy()
    expected[5:8], expected[34:38] = False, False
    np.testing.assert_array_equal(visible_pieces(photograph, after, mask), expected)
    assert not visible_pieces(photograph, photograph.pixels, mask).any()
    assert not visible_pieces(photograph, after, np.zeros_like(mask)).any()
