import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from defectgen.imaging.images import ImageError, read_image

Array = NDArray[Any]
Read = Callable[[bytes], Array]
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:PIL"), pytest.mark.filterwarnings("ignore:::tifffile")]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file of the given bytes."""

    def reading(data: bytes) -> Array:
        (tmp_path / "a.tif").write_bytes(data)
        return read_image(tmp_path / "a.tif").pixels

    return reading


def noise(shape: tuple[int, ...], dtype: str = "u2", limit: int | None = None) -> Array:
    return np.random.default_rng(0).integers(0, limit or np.iinfo(dtype).max, shape, dtype)


def written(pixels: Array, **settings: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **settings)
    return out.getvalue()


def pages(*each: tuple[Array, dict[str, Any]], **settings: Any) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out, **settings) as writer:
        for pixels, its_own in each:
            writer.write(pixels, **its_own)
    return out.getvalue()


def lzw(pixels: Array) -> bytes:
    return bytes(cv2.imencode(".tif", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1])


def by_pillow(pixels: Array, **settings: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF", **settings)
    return out.getvalue()


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value for a tag that has a single one."""
    (first,) = struct.unpack_from("<I", data, 4)
    entries = (first + 2 + 12 * i for i in range(struct.unpack_from("<H", data, first)[0]))
    at = next(entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == tag)
    return data[: at + 2] + struct.pack("<HII", 4, 1, value) + data[at + 12 :]


def packed(pixels: Array, depth: int, *, rows: int = 7, apart: bool = False, kind: int | None = None) -> bytes:
    """A TIFF of [H, W] or [H, W, C] with `depth` bits per channel, packed, in strips of `rows`, as cameras write it."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    planes = [pixels[..., i] for i in range(channels)] if apart else [pixels.reshape(height, -1)]
    bits = [(plane[..., None] >> np.arange(depth)[::-1]).astype(np.uint8) & 1 for plane in planes]
    lines = [np.packbits(each.reshape(height, -1), axis=1) for each in bits]
    strips = [each[top : top + rows].tobytes() for each in lines for top in range(0, height, rows)]
    count, length = len(strips), len(strips[0])
    kind = (2 if channels == 3 else 1) if kind is None else kind
    values = {256: [width], 257: [height], 258: [depth] * channels, 259: [1], 262: [kind], 273: [0] * count,
              277: [channels], 278: [rows], 279: [len(each) for each in strips], 284: [2 if apart else 1]}  # fmt: skip
    beyond = 8 + 2 + 12 * len(values) + 4
    after = beyond + sum(4 * len(each) for each in values.values() if len(each) > 1)
    values[273] = [after + i * length for i in range(count)]
    entries, arrays = b"", b""
    for tag, its in values.items():
        at = its[0] if len(its) == 1 else beyond + len(arrays)
        entries += struct.pack("<HHII", tag, 4, len(its), at)
        arrays += struct.pack(f"<{len(its)}I", *its) if len(its) > 1 else b""
    start = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + arrays
    return start + b"".join(strip.ljust(length, b"\0") for strip in strips)


APART = {"photometric": "rgb", "planarconfig": "separate"}
DEEP: dict[str, tuple[tuple[int, ...], Callable[[Array], bytes]]] = {
    "plain": ((30, 41), written),
    "big-endian": ((30, 41), lambda a: written(a, byteorder=">")),
    "zipped with a predictor": ((30, 41), lambda a: written(a, byteorder=">", compression="zlib", predictor=True)),
    "packbits": ((30, 41), lambda a: by_pillow(a, compression="packbits")),
    "tiles": ((30, 41), lambda a: written(a, tile=(16, 16), compression="zlib")),
    "strips": ((30, 41), lambda a: written(a, rowsperstrip=7)),
    "white is zero": ((30, 41), lambda a: written(65535 - a, photometric="miniswhite")),
    "ImageJ": ((30, 41), lambda a: written(a, imagej=True)),
    "BigTIFF": ((30, 41), lambda a: written(a, bigtiff=True)),
    "BigTIFF, big-endian": ((30, 41), lambda a: written(a, bigtiff=True, byteorder=">")),
    "one row": ((1, 41), lambda a: written(a, photometric="minisblack")),
    "one column": ((41, 1), lambda a: written(a, photometric="minisblack")),
    "RGB": ((30, 41, 3), lambda a: written(a, photometric="rgb")),
    "RGBA": ((30, 41, 4), lambda a: written(a, photometric="rgb", extrasamples=["unassalpha"])),
    "gray and alpha": ((30, 41, 2), lambda a: written(a, photometric="minisblack", planarconfig="contig")),
    "planes": ((30, 41, 3), lambda a: written(np.moveaxis(a, 2, 0), **APART)),
    "planes in strips": ((30, 41, 3), lambda a: written(np.moveaxis(a, 2, 0), **APART, rowsperstrip=7)),
    "planes in tiles": ((30, 41, 3), lambda a: written(np.moveaxis(a, 2, 0), **APART, tile=(16, 16))),
    "planes, zipped": ((30, 41, 3), lambda a: written(np.moveaxis(a, 2, 0), **APART, compression="zlib")),
    "planes and alpha": ((30, 41, 4), lambda a: written(np.moveaxis(a, 2, 0), **APART, extrasamples=["unassalpha"])),
    "LZW": ((30, 41), lzw),
    "LZW, RGB": ((30, 41, 3), lzw),
}


@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_are_read_exactly_however_they_are_stored(read: Read, kind: str) -> None:
    shape, write = DEEP[kind]
    pixels = noise(shape)
    for _ in range(2):  # memory that was never written differs from time to time
        found = read(write(pixels))
        np.testing.assert_array_equal(found, pixels)
        assert found.dtype == np.uint16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["plain", "planes", "LZW", "8 bits, LZW"])
def test_the_orientation_is_applied_once(read: Read, kind: str, orientation: int) -> None:
    pixels = noise((30, 41, 3) if kind == "planes" else (30, 41), "u1" if kind.startswith("8") else "u2")
    if kind.endswith("LZW"):
        found = read(by_pillow(pixels, compression="tiff_lzw", tiffinfo={274: orientation}))
    else:
        stored = np.moveaxis(pixels, 2, 0) if kind == "planes" else pixels
        settings = APART if kind == "planes" else {"photometric": "minisblack"}
        found = read(written(stored, **settings, extratags=[(274, "H", 1, orientation, True)]))
    upright = {
        1: pixels, 2: np.fliplr(pixels), 3: np.rot90(pixels, 2), 4: np.flipud(pixels),
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(found, upright)


@pytest.mark.parametrize("depth", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("width", [40, 41])
def test_9_to_15_bits_are_read_as_they_are(read: Read, depth: int, width: int) -> None:
    gray, color = (noise(shape, limit=1 << depth) for shape in ((30, width), (30, width, 3)))
    np.testing.assert_array_equal(read(packed(gray, depth)), gray)
    np.testing.assert_array_equal(read(packed((1 << depth) - 1 - gray, depth, kind=0)), gray)
    np.testing.assert_array_equal(read(packed(color, depth)), color)
    np.testing.assert_array_equal(read(packed(color, depth, apart=True)), color)
    assert read(packed(gray, depth)).dtype == np.uint16


GRAY, RGB = noise((30, 41)), noise((30, 41, 3))
MANY = np.stack([GRAY, GRAY[::-1], GRAY])
OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "float": (lambda: written(GRAY.astype(np.float32)), "32-bit float; save it as 8-bit or 16-bit"),
    "half": (lambda: written(GRAY.astype(np.float16)), "16-bit float; save it as"),
    "signed": (lambda: written(GRAY.astype(np.int16)), "signed 16-bit integers; save it as"),
    "signed 8": (lambda: written(GRAY.astype(np.int8)), "signed 8-bit integers; save it as"),
    "32 bits": (lambda: written(GRAY.astype(np.uint32)), "32 bits per channel; save it as"),
    "complex": (lambda: written(GRAY.astype(np.complex64)), "complex numbers; save it as"),
    "5 channels": (lambda: written(noise((30, 41, 5)), photometric="rgb", planarconfig="contig"), "5 channels, not"),
    "5 channels of 8 bits": (lambda: written(noise((30, 41, 5), "u1"), photometric="rgb"), "5 channels, not"),
    "3 channels of gray": (
        lambda: written(RGB, photometric="minisblack", planarconfig="contig"),
        "3 channels, not gray or RGB",
    ),
    "CMYK": (lambda: written(noise((30, 41, 4)), photometric="separated"), "color model SEPARATED; save it as"),
    "raw": (lambda: written(GRAY, photometric="cfa"), "color model CFA; save it as"),
    "5 bits": (lambda: packed(GRAY % 32, 5), "5 bits per channel; save it as"),
    "12 bits, LZW": (lambda: with_tag(packed(GRAY % 4096, 12), 259, 5), "12 bit, and not in plain rows; save it as"),
    "planes, LZW": (
        lambda: with_tag(written(np.moveaxis(RGB, 2, 0), **APART, compression="zlib"), 259, 5),
        "16-bit planes of colors, stored apart and with LZW compression; save it as",
    ),
    "volume": (lambda: written(np.stack([GRAY] * 2), volumetric=True, tile=(16, 16, 16)), "volume of 2 slices; save"),
    "stack": (lambda: written(MANY, photometric="minisblack"), "has 3 pages; save the page to use"),
    "stack of 8 bits": (lambda: written(MANY.astype("u1"), photometric="minisblack"), "has 3 pages; save the page"),
    "stack behind a page": (lambda: written(MANY, photometric="minisblack", truncate=True), "has 3 pages; save"),
    "ImageJ stack": (lambda: written(MANY, imagej=True), "has 3 pages; save the page to use"),
    "ImageJ stack behind a page": (
        lambda: written(GRAY, description="ImageJ=1.53\nimages=4\nslices=4\n", metadata=None),
        "has 4 pages; save the page to use",
    ),
    "pages of two sizes": (lambda: pages((GRAY, {}), (GRAY[:8, :8], {})), "has 2 pages; save the page to use"),
    "previews": (lambda: pages((GRAY, {"subfiletype": 1})), "has reduced pages alone"),
    "no page": (lambda: b"II*\0\0\0\0\0" + bytes(100), "truncated or damaged"),
    "a strip that is missing": (lambda: with_tag(written(GRAY), 273, 0), "a part of its pixels is missing"),
    "a strip beyond the end": (lambda: with_tag(written(GRAY), 273, 2**20), "a part of its pixels is missing"),
    "LZW, cut": (lambda: lzw(RGB)[:-2000], "truncated or damaged"),
    "12 bits, cut": (lambda: packed(GRAY % 4096, 12)[:-400], "truncated or damaged"),
    "cut": (lambda: written(GRAY)[:-1], "truncated or damaged"),
    "strips, cut": (lambda: written(GRAY, rowsperstrip=7)[:-1], "truncated or damaged"),
    "tiles, cut": (lambda: written(GRAY, tile=(16, 16))[:-1], "truncated or damaged"),
    "zipped, cut": (lambda: written(GRAY, compression="zlib")[:-9], "truncated or damaged"),
    "planes, cut": (lambda: written(np.moveaxis(RGB, 2, 0), **APART)[:-1], "truncated or damaged"),
    "packbits, cut": (lambda: by_pillow(GRAY, compression="packbits")[:2000], "truncated or damaged"),
    "12 bits in 16": (lambda: with_tag(written(GRAY), 258, 12), "bytes of pixels, not"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_one_right_reading_is_refused_with_its_reason(read: Read, name: str) -> None:
    make, reason = OTHERS[name]
    with pytest.raises(ImageError, match=reason) as found:
        read(make())
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("settings", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
@pytest.mark.parametrize("kind", [1, 4, 5])  # a thumbnail, a transparency mask, a thumbnail of that
def test_a_page_that_belongs_to_another_one_is_passed_over(
    read: Read, dtype: str, settings: dict[str, Any], kind: int
) -> None:
    whole, other = noise((30, 41), dtype), noise((10, 14), dtype)
    plain = {"photometric": "minisblack", "metadata": None, "subfiletype": 1}
    for kinds in ((0, kind), (kind, 0), (kind, 0, kind)):
        out = io.BytesIO(pages(*((other if kind else whole, plain) for kind in kinds), **settings))
        np.testing.assert_array_equal(read(with_kinds(out, kinds)), whole)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_thumbnail_before_an_image_for_another_decoder(read: Read, dtype: str) -> None:
    whole, small = noise((30, 41), dtype), noise((10, 14), dtype)
    settings = {"compression": "tiff_lzw", "tiffinfo": {254: 1}}
    out = io.BytesIO(by_pillow(small, **settings, save_all=True, append_images=[Image.fromarray(whole)]))
    np.testing.assert_array_equal(read(with_kinds(out, (1, 0))), whole)


def with_kinds(file: io.BytesIO, kinds: tuple[int, ...]) -> bytes:
    """A file of reduced pages with other kinds of them (NewSubfileType)."""
    with tifffile.TiffFile(file) as tiff:
        places = [page.tags[254].valueoffset for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
        order, form = tiff.byteorder, "H" if tiff.pages.first.tags[254].dtype == 3 else "I"
    data = bytearray(file.getvalue())
    for place, kind in zip(places, kinds, strict=True):
        struct.pack_into(order + form, data, place, kind)
    return bytes(data)
