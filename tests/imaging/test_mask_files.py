from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectgen.imaging.images import ImageError
from defectgen.imaging.mask_files import mask_files, read_masks


def save(path: Path, value: int, columns: slice, size: tuple[int, int] = (6, 8)) -> Path:
    pixels = np.zeros(size, np.uint8)
    pixels[:, columns] = value
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 255, slice(0, 2))
    assert mask_files(path) == [path]
    assert read_masks(path).sum() == 12
    with pytest.raises(ImageError, match="the mask has the values 0, 7"):
        read_masks(save(tmp_path / "b.png", 7, slice(0, 2)))


def test_the_masks_of_a_folder_are_united_whatever_value_each_has(tmp_path: Path) -> None:
    first, second = save(tmp_path / "000/000.png", 255, slice(0, 2)), save(tmp_path / "000/001.png", 249, slice(1, 4))
    (tmp_path / "000/._000.png").write_bytes(b"x")
    assert mask_files(tmp_path / "000") == [first, second]
    np.testing.assert_array_equal(read_masks(tmp_path / "000").all(axis=0), [True] * 4 + [False] * 4)


def test_masks_of_a_folder_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    save(tmp_path / "000/000.png", 255, slice(0, 2))
    save(tmp_path / "000/001.png", 255, slice(0, 2), (6, 9))
    with pytest.raises(ImageError, match=r"001\.png: is 9x6, but 000\.png beside it is 8x6"):
        read_masks(tmp_path / "000")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "000/001.png")
    with pytest.raises(ImageError, match=r"001\.png: the mask has the values 0, 1, 2"):
        read_masks(tmp_path / "000")
