"""Finds defects that were photographed again, in another light or at another place of the image.

Collections of defects often show each one several times. If one photograph is trained on and another one is tested on,
a network that remembers is rewarded, and more varied training seems to hurt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from defectgen.evaluation.data import LabeledImage, load_image, load_mask
from defectgen.imaging.mask_files import Mask
from defectgen.imaging.windows import BoolArray, BoundedCache, Box, FloatArray, defect_pieces

_CLOSE, _AROUND = 8, 16  # pixels around a defect: its own surroundings, and those whose texture is compared
_ALIKE = 0.7  # least correlation of two photographs of one defect
_SAME_TEXTURE = 0.4  # least correlation of the fine texture around it; other parts of one material have up to .26
_OVERLAP = 0.25  # least IoU of their masks
_SIZES = 3.3  # largest ratio of their areas
_DETAIL = 4.0  # pixels; coarser brightness is light
_EDGE = 4.0  # times the median size of the detail: what is stronger is an edge
_CACHE_BYTES = 1 << 28
_LEAST = 50  # pixels of texture that suffice to compare


@dataclass(frozen=True)
class _Photograph:
    """The largest defect of an image: brightness, mask and box."""

    gray: FloatArray
    mask: BoolArray
    box: Box


def rephotographed(images: Sequence[LabeledImage], others: Sequence[LabeledImage]) -> BoolArray:
    """Whether an image shows the same defect as another one, [N, M]; False for normals and where masks are missing."""
    found = np.zeros((len(images), len(others)), np.bool_)
    for i, one in enumerate(images):
        for j, other in enumerate(others):
            if one.category == other.category and one.mask is not None and other.mask is not None:
                a, b = _PHOTOGRAPHS.read((one.path, one.mask)), _PHOTOGRAPHS.read((other.path, other.mask))
                found[i, j] = a is not None and b is not None and _same(a, b)
    return found


def _photograph(files: tuple[Path, Mask]) -> _Photograph | None:
    path, mask = files
    gray = np.ascontiguousarray(load_image(path).mean(axis=0), np.float32)
    pieces = defect_pieces(load_mask(mask, gray.shape))
    if not pieces:
        return None
    box, piece = max(pieces, key=lambda each: int(each[1].sum()))
    whole = np.zeros(gray.shape, np.bool_)
    whole[box.y : box.y + box.height, box.x : box.x + box.width] = piece
    return _Photograph(gray, np.asarray(cv2.dilate(whole.view(np.uint8), np.ones((5, 5), np.uint8))) > 0, box)


_PHOTOGRAPHS = BoundedCache(_photograph, lambda each: each.gray.nbytes + each.mask.nbytes if each else 0, _CACHE_BYTES)


def _same(a: _Photograph, b: _Photograph) -> bool:
    ratio = float(a.mask.sum() / b.mask.sum())
    if not 1 / _SIZES < ratio < _SIZES:
        return False
    height, width = (min(pair) for pair in zip(a.gray.shape, b.gray.shape, strict=True))
    top, left = max(b.box.y - _CLOSE, 0), max(b.box.x - _CLOSE, 0)
    close = b.gray[top : b.box.y + b.box.height + _CLOSE, left : b.box.x + b.box.width + _CLOSE][:height, :width]
    if close.std() < 1e-4:
        return False
    scores = np.asarray(cv2.matchTemplate(a.gray, close, cv2.TM_CCOEFF_NORMED))
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    if scores[row, column] < _ALIKE:
        return False
    down, right = int(row) - top, int(column) - left  # from b to a
    rows = _common(b.box.y, b.box.height, b.gray.shape[0], a.gray.shape[0], down)
    columns = _common(b.box.x, b.box.width, b.gray.shape[1], a.gray.shape[1], right)
    in_a = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    of_a, of_b = a.mask[in_a], b.mask[rows, columns]
    around = ~(of_a | of_b)
    if (of_a & of_b).sum() < _OVERLAP * (~around).sum() or around.sum() < _LEAST:
        return False
    details = np.stack([_detail(each, around) for each in (a.gray[in_a], b.gray[rows, columns])])
    # Edges of parts look alike; grain does not. They stand out from it.
    size = np.abs(details)
    details = details[:, (size <= _EDGE * np.median(size, axis=1, keepdims=True)).all(axis=0)]
    if details.shape[1] < _LEAST or min(details.std(axis=1)) < 1e-4:
        return False
    return float(np.asarray(np.corrcoef(details))[0, 1]) > _SAME_TEXTURE


def _common(start: int, extent: int, ours: int, theirs: int, shift: int) -> slice:
    """What both images show around a defect on one axis, in coordinates of the one that has it at `start`."""
    return slice(max(0, -shift, start - _AROUND), min(ours, theirs - shift, start + extent + _AROUND))


def _detail(gray: FloatArray, around: BoolArray) -> FloatArray:
    """The fine detail of the pixels around a defect, [N]. The defect has no share in it: its halo looks the same."""
    weight = around.astype(np.float32)
    light, known = (np.asarray(cv2.GaussianBlur(each, (0, 0), _DETAIL)) for each in (gray * weight, weight))
    return np.asarray((gray - light / np.maximum(known, 1e-6))[around], np.float32)
