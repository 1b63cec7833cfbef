"""TIFF files: which of them have one right reading, and the decoding of those that Pillow does not read.

Nothing is guessed. Of a file with several full pages none is taken, and neither floats nor signed integers are scaled.
Values of 9 to 15 bits are taken as they are, into 16 bits: so do cameras that write two bytes for each.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from tifffile import TIFF, TiffFile, TiffPage

MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files."""
ADVICE: Final = "save it as 8-bit or 16-bit, gray or RGB"
_NOT_FULL = 1 | 4  # NewSubfileType: a reduced version of another page, or its transparency mask
_FORMATS = {2: "signed {}-bit integers", 3: "{}-bit float", 5: "complex integers", 6: "complex numbers"}
_WHITE_IS_ZERO = 0
_DIRECT = {_WHITE_IS_ZERO: 1, 1: 1, 2: 3}  # PhotometricInterpretation of gray and RGB: channels without alpha
_COLORS = {**_DIRECT, 3: 1, 5: 4, 6: 3, 8: 3}  # and of a palette, CMYK, YCbCr and Lab
_APART = 2  # PlanarConfiguration: a plane for each channel


class UnsupportedError(Exception):
    """An image that is not read; the message is the reason."""


@dataclass(frozen=True)
class Page:
    """The only full page of a file."""

    page: TiffPage
    depth: int
    """Bits per channel: 1, 2, 4, or 8 to 16."""
    first: bool
    """Whether it is the first page."""
    by_pillow: bool
    """Whether Pillow reads it right."""

    @property
    def width(self) -> int:
        return self.page.imagewidth

    @property
    def height(self) -> int:
        return self.page.imagelength

    @property
    def channels(self) -> int:
        """With alpha."""
        return self.page.samplesperpixel


@contextmanager
def opened(file: BinaryIO) -> Iterator[Page]:
    """The only full page of a file, its header read.

    Raises:
        UnsupportedError: it has several, or its pixels have no one right reading.
        Exception: as tifffile, whose kinds of errors about damaged files are many.
    """
    with TiffFile(file) as tiff:
        pages = [page for page in tiff.pages if not getattr(page, "subfiletype", 0) & _NOT_FULL]
        if not tiff.pages:
            raise ValueError("it has no page")
        count = max(len(pages), _images_of_one_page(tiff)) if pages else 0
        if count != 1:
            what = f"has {count} pages" if count else "has reduced pages alone, as raw files of cameras do"
            raise UnsupportedError(f"{what}; save the page to use as a file of its own")
        page = pages[0]
        assert isinstance(page, TiffPage)  # tifffile makes others for files of many pages only
        depth = _depth(page)
        by_pillow = depth <= 8 and not (tiff.is_bigtiff and tiff.byteorder == ">")
        yield Page(page, depth, page.offset == tiff.pages.first.offset, by_pillow)


def _images_of_one_page(tiff: TiffFile) -> int:
    """How many images a file has by its description: ImageJ and tifffile write large stacks behind a single page."""
    imagej = int((tiff.imagej_metadata or {}).get("images", 1))
    shaped = [each for each in tiff.shaped_metadata or () if each.get("truncated")]
    page = math.prod(tiff.pages.first.shape)
    return max(imagej, *(math.prod(each["shape"]) // page for each in shaped), 0)


def _depth(page: TiffPage) -> int:
    """Bits per channel of a page that has one right reading."""
    depths, formats = (set(np.atleast_1d(_value(page, tag, 1)).tolist()) for tag in ("BitsPerSample", "SampleFormat"))
    if len(depths) > 1:
        raise UnsupportedError(f"its channels have {' and '.join(map(str, sorted(depths)))} bits; {ADVICE}")
    depth = int(depths.pop())
    for number, name in _FORMATS.items():
        if number in formats:
            raise UnsupportedError(f"{name.format(depth)}; {ADVICE}")
    if depth not in (1, 2, 4, 8, *range(9, 17)):
        raise UnsupportedError(f"{depth} bits per channel; {ADVICE}")
    kind = _value(page, "PhotometricInterpretation", -1)
    if kind not in (_COLORS if depth <= 8 else _DIRECT):
        name = getattr(kind, "name", "unknown")
        raise UnsupportedError(f"{depth}-bit, with the color model {name}; {ADVICE}")
    if page.samplesperpixel - _COLORS[kind] not in (0, 1):
        raise UnsupportedError(f"{page.samplesperpixel} channels, not gray or RGB, with or without alpha; {ADVICE}")
    if page.imagedepth > 1:
        raise UnsupportedError(f"a volume of {page.imagedepth} slices; save the slice to use as a file of its own")
    return depth


def _value(page: TiffPage, tag: str, default: int) -> Any:
    found = page.tags.get(tag)
    return default if found is None else found.value


def page_first(data: bytes, page: Page) -> bytes:
    """A file whose header points to a page, for readers that take the first one."""
    if page.first:
        return data
    order = "<" if data[:1] == b"I" else ">"
    at, form = (8, "Q") if data[2:4] in (b"+\0", b"\0+") else (4, "I")
    offset = struct.pack(order + form, page.page.offset)
    return data[:at] + offset + data[at + len(offset) :]


def decode(data: bytes, page: Page) -> tuple[NDArray[Any], int]:
    """The pixels of a page, [H, W] or [H, W, 2 to 4], 8 or 16 bits, and the orientation to apply, 1 to 8.

    Raises:
        UnsupportedError: no library here can decode it.
        Exception: it is damaged.
    """
    orientation = int(_value(page.page, "Orientation", 1))
    name = getattr(page.page.compression, "name", str(page.page.compression))
    if page.depth < 8 or page.page.photometric not in _DIRECT:
        raise UnsupportedError(f"a big-endian BigTIFF that is neither gray nor RGB; {ADVICE}")
    _require_whole(page.page, len(data))
    if 8 < page.depth < 16:
        if page.page.compression != 1 or page.page.is_tiled or page.page.fillorder != 1:
            raise UnsupportedError(f"{page.depth} bit, and not in plain rows; {ADVICE}")
        pixels = _unpacked(data, page)
    elif page.page.compression in TIFF.DECOMPRESSORS and page.page.predictor in TIFF.UNPREDICTORS:
        pixels = _interleaved(page.page.asarray(squeeze=False, maxworkers=1)[:, 0])
    elif page.page.planarconfig == _APART and page.channels > 1:
        raise UnsupportedError(f"{page.depth}-bit planes of colors, stored apart and with {name} compression; {ADVICE}")
    else:
        pixels, orientation = _by_opencv(page_first(data, page), page), 1  # which it has applied
        if pixels.shape[2] != page.channels:
            raise UnsupportedError(f"{page.depth}-bit with {page.channels} channels and {name} compression; {ADVICE}")
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize != (page.depth + 7) // 8:
        raise ValueError(f"its pixels are {pixels.dtype}")
    pixels = pixels.astype(np.uint8 if page.depth == 8 else np.uint16, copy=False)  # in the machine's byte order
    if page.page.photometric == _WHITE_IS_ZERO:  # as X-ray scanners write
        pixels[..., 0] = (1 << page.depth) - 1 - pixels[..., 0]
    return pixels[..., 0] if page.channels == 1 else pixels, orientation


def _require_whole(page: TiffPage, size: int) -> None:
    """Refuse a page of which strips or tiles are missing: tifffile fills them with zeros, others with anything."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(parts) < math.prod(page.chunked) or any(not count or not 0 < at < size for at, count in parts):
        raise ValueError("a part of its pixels is missing")


def _interleaved(planes: NDArray[Any]) -> NDArray[Any]:
    """Planes of channels, [planes, H, W, channels], as [H, W, planes * channels]."""
    _, height, width, _ = planes.shape
    return np.ascontiguousarray(planes.transpose(1, 2, 0, 3)).reshape(height, width, -1)


def _unpacked(data: bytes, page: Page) -> NDArray[np.uint16]:
    """Pixels of 9 to 15 bits, packed one after another in rows that begin at a byte: [H, W, channels]."""
    planes = page.channels if page.page.planarconfig == _APART else 1
    values = page.width * page.channels // planes  # in a row
    length = -(-values * page.depth // 8)
    parts = zip(page.page.dataoffsets, page.page.databytecounts, strict=False)
    packed = b"".join(data[at : at + count] for at, count in parts)
    if len(packed) != length * page.height * planes:
        raise ValueError(f"{len(packed)} bytes of pixels, not {length * page.height * planes}")
    rows = np.frombuffer(packed, np.uint8).reshape(-1, length)
    out = np.empty((len(rows), values), np.uint16)
    for row, into in zip(rows, out, strict=True):  # one by one: a value takes 32 bytes on the way
        bits = np.unpackbits(row)[: values * page.depth].reshape(values, page.depth)
        into[:] = np.packbits(np.pad(bits, ((0, 0), (16 - page.depth, 0))), axis=1).view(">u2")[:, 0]
    return _interleaved(out.reshape(planes, page.height, page.width, -1))


def _by_opencv(data: bytes, page: Page) -> NDArray[Any]:
    """The pixels of the first page, [H, W, channels], with its orientation applied: for LZW and the like."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or sorted(pixels.shape[:2]) != sorted((page.height, page.width)):
        raise ValueError("OpenCV cannot decode it")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] > 2 else pixels)
