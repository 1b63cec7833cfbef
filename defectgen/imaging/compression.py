"""The compression of JPEG files, for what is painted into them.

Where a camera writes JPEG, real defects are as coarsely quantized as the ground around them. Painted ones that are not
can be told by that alone, by eyes and by networks that are trained on them.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from defectgen.imaging.images import ORIENTATIONS, Pixels

_BACK = {6: 8, 8: 6}  # orientations that undo others; the rest undo themselves
_UNITS = {0: (8, 8), 1: (8, 16), 2: (16, 16)}  # height and width of what is coded together, by the sampling of colours


@dataclass(frozen=True)
class Compression:
    """How a JPEG file is compressed: as Pillow has it, and the EXIF orientation that reading it applies."""

    tables: Mapping[int, Sequence[int]]
    sampling: int
    orientation: int


def compression_of(path: Path) -> Compression | None:
    """That of a JPEG file in gray or colour; None for other files, and for rare kinds of sampling."""
    with suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=("JPEG",)) as file:
        sampling = 0 if file.mode == "L" else JpegImagePlugin.get_sampling(file)
        if isinstance(file, JpegImagePlugin.JpegImageFile) and file.mode in ("L", "RGB") and sampling in _UNITS:
            return Compression(file.quantization, sampling, file.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def compressed_as(of: Compression, before: Pixels, after: Pixels) -> Pixels:
    """An image with what differs from the one before compressed as that is.

    Args:
        before, after: [H, W] or [H, W, 3], uint8; the former as read from the file.

    Returns:
        Like `after`; differs from it only in the blocks of 8 or 16 pixels in which that differs from `before`.
    """
    if before.shape != after.shape or after.dtype != np.uint8 or after.shape[2:] not in ((), (3,)):
        return after
    upright = ORIENTATIONS.get(of.orientation, np.asarray)
    as_stored = ORIENTATIONS.get(_BACK.get(of.orientation, of.orientation), np.asarray)
    old, new = as_stored(before), np.array(as_stored(after))
    changed = (old != new).reshape(*new.shape[:2], -1).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return after
    height, width = _UNITS[of.sampling]
    # A block more on each side: the colours of neighbours are smoothed together.
    top, left = max(0, rows[0] // height - 1) * height, max(0, columns[0] // width - 1) * width
    part = slice(top, (rows[-1] // height + 2) * height), slice(left, (columns[-1] // width + 2) * width)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(new[part])).save(
        buffer, "JPEG", qtables=of.tables, **({} if new.ndim == 2 else {"subsampling": of.sampling})
    )
    coded = np.asarray(Image.open(buffer))
    blocks = np.zeros((-(-new.shape[0] // height), -(-new.shape[1] // width)), np.bool_)
    y, x = np.nonzero(changed)
    blocks[y // height, x // width] = True
    inside = np.repeat(np.repeat(blocks, height, axis=0), width, axis=1)[: new.shape[0], : new.shape[1]][part]
    new[part][inside] = coded[inside]
    return np.ascontiguousarray(upright(new))
