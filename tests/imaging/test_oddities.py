from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectgen.imaging.images import DecodedImage, read_image
from defectgen.imaging.mask_files import DrawnMask
from defectgen.imaging.oddities import covered, is_bilevel, is_transparent, is_turned_alone, orientation


@pytest.mark.parametrize(
    ("ground", "defect", "share"),
    [
        (True, np.s_[4:6, 4:6], 0.96),
        (True, np.s_[0:2, 4:6], 0.96),  # the defect reaches the border
        (True, np.s_[0:0, 0:0], 1.0),
        (False, np.s_[1:9, 1:9], 0.64),  # large, though its border is free
        (True, np.s_[1:9, 1:9], 0.36),  # all four borders
        (True, np.s_[0:9, 1:9], 0.0),  # three of them
        (False, np.s_[0:3, 0:10], 0.0),
    ],
)
def test_a_mask_of_most_of_the_image_or_all_its_borders_may_be_inverted(
    ground: bool, defect: tuple[slice, slice], share: float
) -> None:
    mask = np.full((10, 10), ground)
    mask[defect] = not ground
    assert covered(mask) == pytest.approx(share)


def saved(path: Path, turn: int, size: tuple[int, int]) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("L", size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_orientation_of_a_file(tmp_path: Path, suffix: str) -> None:
    assert orientation(saved(tmp_path / f"a.{suffix}", 6, (20, 10))) == 6
    Image.new("L", (20, 10)).save(tmp_path / f"b.{suffix}")
    assert orientation(tmp_path / f"b.{suffix}") == 1
    assert orientation(saved(tmp_path / f"c.{suffix}", 77, (20, 10))) == 1


@pytest.mark.parametrize(
    ("turn", "size", "of_mask", "alone"),
    [
        (1, (10, 10), 1, False),
        (6, (10, 10), 1, True),
        (6, (20, 10), 1, False),
        (3, (20, 10), 1, True),
        (6, (10, 10), 6, False),
        (3, (20, 10), 3, False),
    ],
)
def test_an_image_that_exif_turns_without_its_mask(
    tmp_path: Path, turn: int, size: tuple[int, int], of_mask: int, alone: bool
) -> None:
    path, mask = saved(tmp_path / "a.jpg", turn, size), saved(tmp_path / "a.png", of_mask, size)
    assert is_turned_alone(path, mask, read_image(path)) is alone


@pytest.mark.parametrize(
    ("turn", "recorded", "displayed", "alone"),
    [
        (1, None, False, False),
        (6, None, False, True),  # fractions of the sides fit either way
        (6, (20, 10), False, False),  # the size tells
        (3, (10, 20), False, True),
        (6, None, True, False),
        (3, (10, 20), True, False),
    ],
)
def test_an_image_that_exif_turns_without_its_annotations(
    tmp_path: Path, turn: int, recorded: tuple[int, int] | None, displayed: bool, alone: bool
) -> None:
    path = saved(tmp_path / "a.jpg", turn, (20, 10))
    mask = DrawnMask(tmp_path / "a.json", "a.jpg", "crack", recorded, displayed)
    assert is_turned_alone(path, mask, read_image(path)) is alone


def test_transparency_counts_where_alpha_is_not_full() -> None:
    pixels = np.full((4, 5, 4), 255, np.uint8)
    assert not is_transparent(DecodedImage(pixels))
    assert not is_transparent(DecodedImage(pixels[..., :3]))
    assert not is_transparent(DecodedImage(pixels[..., 0] // 2))
    pixels[1, 2, 3] = 254
    assert is_transparent(DecodedImage(pixels))
    assert is_transparent(DecodedImage(np.full((4, 5, 2), 40000, np.uint16)))


def test_black_and_white_images_look_like_masks() -> None:
    pixels = np.zeros((40, 50), np.uint8)
    pixels[10:20] = 255
    assert is_bilevel(DecodedImage(pixels))
    assert is_bilevel(DecodedImage(pixels // 255))
    assert is_bilevel(DecodedImage(np.stack([pixels] * 3, axis=2)))
    assert not is_bilevel(DecodedImage(np.stack([pixels, pixels, 0 * pixels], axis=2)))
    assert not is_bilevel(DecodedImage(0 * pixels))
    pixels[3, 3] = 7
    assert not is_bilevel(DecodedImage(pixels))
