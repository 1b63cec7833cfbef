import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from defectgen.imaging.compression import Compression, compressed_as, compression_of
from defectgen.imaging.images import read_image


def write(path: Path, *, gray: bool, sampling: int = 2, orientation: int = 1) -> tuple[NDArray[np.uint8], Compression]:
    """A photograph of noise and stripes, whose sides are no multiples of a block: its pixels as read, and how it is."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(120, 12, (75, 106) if gray else (75, 106, 3))
    pixels[:, ::9] += 40
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(path, "JPEG", quality=60, exif=exif, **({} if gray else {"subsampling": sampling}))
    of = compression_of(path)
    assert of is not None
    return np.asarray(read_image(path).pixels, np.uint8), of


def coefficients(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The cosine transform of each whole block of 8 x 8 pixels of a gray image, [rows, columns, 8, 8]."""
    k, n = np.mgrid[:8, :8]
    basis = np.cos(np.pi * (2 * n + 1) * k / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)
    height, width = (side // 8 for side in pixels.shape)
    blocks = pixels[: 8 * height, : 8 * width].astype(float).reshape(height, 8, width, 8).transpose(0, 2, 1, 3)
    return np.asarray(basis @ (blocks - 128) @ basis.T)


def test_what_is_painted_into_a_jpeg_has_its_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    before, of = write(path, gray=True)
    after = before.copy()
    after[21:37, 40:60] = np.random.default_rng(1).integers(0, 90, (16, 20))
    made = compressed_as(of, before, after)
    assert (made != before).any()
    table = np.array(of.tables[0]).reshape(8, 8)

    def off(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """How far the finest coefficients of the blocks are from multiples of the steps of the file."""
        parts = coefficients(pixels)[..., 4:, 4:] / table[4:, 4:]
        return np.asarray(np.abs(parts - np.rint(parts)).max(axis=(2, 3)))

    painted = np.zeros((9, 13), np.bool_)
    painted[2:5, 5:8] = True
    assert off(before).max() < 0.2
    assert off(after)[painted].max() > 0.3
    assert off(np.asarray(made, np.uint8)).max() < 0.2
    blocks = np.repeat(np.repeat(painted, 8, axis=0), 8, axis=1)
    assert np.array_equal(made[:72, :104][~blocks], before[:72, :104][~blocks])  # untouched blocks keep their values
    assert np.abs(made[23:35, 42:58].astype(int) - after[23:35, 42:58]).mean() < 12  # it is the same to look at


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_that_of_a_file_painted_as_it_lies_on_the_disk(tmp_path: Path, gray: bool, orientation: int) -> None:
    """The blocks are those of the file, not of the upright image: the same as when the whole file is written anew."""
    path = tmp_path / "a.jpg"
    before, of = write(path, gray=gray, orientation=orientation)
    assert of.orientation == orientation
    after = before.copy()
    after[30:52, 27:49] //= 3
    made = compressed_as(of, before, after)
    raw = np.asarray(Image.open(path))
    turned = {1: raw, 2: raw[:, ::-1], 3: raw[::-1, ::-1], 4: raw[::-1]}
    swapped = raw.swapaxes(0, 1)
    turned |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    assert np.array_equal(before, turned[orientation])
    index = np.arange(raw[..., 0].size if raw.ndim == 3 else raw.size).reshape(raw.shape[:2])
    there = {1: index, 2: index[:, ::-1], 3: index[::-1, ::-1], 4: index[::-1]}
    index = index.swapaxes(0, 1)
    there |= {5: index, 6: index[:, ::-1], 7: index[::-1, ::-1], 8: index[::-1]}
    stored = np.empty_like(raw.reshape(-1, *raw.shape[2:]))
    stored[there[orientation].ravel()] = after.reshape(-1, *after.shape[2:])
    buffer = io.BytesIO()
    sampling = {} if gray else {"subsampling": of.sampling}
    Image.fromarray(stored.reshape(raw.shape)).save(buffer, "JPEG", qtables=of.tables, **sampling)
    whole = np.asarray(Image.open(buffer)).reshape(-1, *raw.shape[2:])[there[orientation].ravel()].reshape(after.shape)
    inside = (slice(33, 49), slice(30, 46))  # blocks that are painted all over
    assert np.array_equal(made[inside], whole[inside])


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_other_blocks_keep_their_values(tmp_path: Path, sampling: int) -> None:
    path = tmp_path / "a.jpg"
    before, of = write(path, gray=False, sampling=sampling)
    assert of.sampling == sampling
    after = before.copy()
    after[70:, 100:] = 0  # in the corner, in blocks that the image ends in
    made = compressed_as(of, before, after)
    height, width = {0: (64, 96), 1: (64, 96), 2: (64, 96)}[sampling]
    outside = np.ones(before.shape[:2], np.bool_)
    outside[height:, width:] = False
    assert np.array_equal(made[outside], before[outside])
    assert made[71:, 101:].max() < 60
    assert np.array_equal(compressed_as(of, before, before.copy()), before)


def test_other_files_have_none(tmp_path: Path) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    Image.new("CMYK", (20, 20)).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff no image")
    assert [compression_of(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg", "missing.jpg")] == [None] * 4
