"""Defect patches: what shows inside a defect's mask, cut out of its photograph, or made by a network.

For a network a patch lies on a pure background (dcdganc.txt, section 2.1): -1, which no patch pixel comes near,
since patches take the range [-0.6, 1] alone. So a dark defect stands out from the black around it as well.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.masks import clean
from defectgen.imaging.windows import BoolArray, Box, FloatArray, paste_on_zeros, value_range

RIM = 5
"""Native pixels of the defect's own background that are cut out around it: the paper expands masks that hold none
(section 3.1). The transition to another background then lies outside the defect, however thin that is."""
_PURE = -1.0
_LOWEST = -0.6
_COMPANDING = 0.6
_MOST = 0.7  # of a window that a defect may cover
_CUT = 3  # pixels of the border that a piece may touch and still seem whole
_MARGIN = 2  # pixels at the window's border that stay background


@dataclass(frozen=True)
class DefectPatch:
    """A defect and the rim around it, of an image or of a network."""

    pixels: FloatArray
    """[H, W, C] in [-1, 1], C 1 or 3."""
    blend_mask: BoolArray
    """[H, W], what may be blended; outside it the pixels continue those inside, without an edge."""
    defect_mask: BoolArray
    """[H, W], the defect, part of the blend mask."""
    annotated: bool = False
    """Whether a person or a network drew the defect mask."""
    source: Path | None = None
    """The image that it was cut out of, and by which `box`."""
    box: Box | None = None
    coarseness: float = 1.0
    """How many of its pixels, a side, were one when it was made."""


def cut_out(photograph: DecodedImage, box: Box, piece: BoolArray, rim: int, source: Path | None = None) -> DefectPatch:
    """A defect of a photograph, `piece` being its part of the mask in `box`, with `rim` pixels around it."""
    height, width = photograph.height, photograph.width
    top, left = max(box.y - rim, 0), max(box.x - rim, 0)
    bottom, right = min(box.y + box.height + rim, height), min(box.x + box.width + rim, width)
    defect_mask = paste_on_zeros(piece, (box.x - left, box.y - top), (bottom - top, right - left))
    blend_mask = cv2.dilate(defect_mask.astype(np.uint8), _disc(rim)) > 0
    low, high = value_range(photograph)
    pixels = photograph.pixels[top:bottom, left:right].astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., : photograph.channels]
    return DefectPatch(
        np.clip((pixels - low) * (2 / (high - low)) - 1, -1, 1), blend_mask, defect_mask, True, source, box
    )


def relative(patch: DefectPatch) -> DefectPatch:
    """A patch with each colour measured from its own background, the rim around the defect_mask, which becomes 0.

    How bright the photograph was is nothing to learn of the defect, and the patch takes the brightness of
    wherever it is laid on.
    """
    rim = patch.blend_mask & ~patch.defect_mask
    level = patch.pixels[rim if rim.any() else patch.blend_mask].mean(axis=0)
    return replace(patch, pixels=np.clip(patch.pixels - level, -1, 1))


def _companded(values: FloatArray, power: float) -> FloatArray:
    """Pixels [H, W, C] in [-1, 1], their faint brightness made stronger, or with the inverse power the reverse.

    A crack is some 30 gray levels darker than its rim, which is 150 above the pure background: without this, no
    loss would see it for a long time. Colour is left as it is, or its noise would become a rainbow.
    """
    gray = values.mean(axis=2, keepdims=True)
    return values - gray + np.sign(gray) * np.abs(gray) ** np.float32(power)


def on_pure_background(patch: DefectPatch, matrix: NDArray[np.float64], size: int, channels: int) -> FloatArray:
    """A patch, moved by an affine `matrix` [2, 3], on the background that networks see: [channels, size, size]."""
    shape = (size, size)
    weight = patch.blend_mask.astype(np.float32)
    lit = np.asarray(
        cv2.warpAffine(_companded(patch.pixels, _COMPANDING) * weight[..., None], matrix, shape), np.float32
    ).reshape(*shape, -1)
    weight = np.asarray(cv2.warpAffine(weight, matrix, shape), np.float32)
    values = _LOWEST + (lit / np.maximum(weight, 0.5)[..., None] + 1) * ((1 - _LOWEST) / 2)
    inside = np.zeros(shape, np.bool_)
    inside[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = weight[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] > 0.5
    pixels: FloatArray = np.where(inside[..., None], np.clip(values, _LOWEST, 1), _PURE).astype(np.float32)
    if pixels.shape[2] != channels:
        pixels = np.broadcast_to(pixels.mean(axis=2, keepdims=True), (*shape, channels))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def of_mask(image: FloatArray, mask: BoolArray, *, cut: bool = True) -> DefectPatch:
    """The patch of an image [C, S, S] that a network made with its mask [S, S]; empty if the mask tells nothing.

    That is a mask of specks, of nearly all, or one that hugs the border of the image. Without `cut` pieces that the
    border cuts off are left out: laid on elsewhere they would end in a straight line.
    """
    defect_mask = clean(mask)
    inner = defect_mask[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    if defect_mask.mean() > _MOST or inner.sum() < 0.5 * defect_mask.sum():
        defect_mask = np.zeros_like(defect_mask)
    if not cut:
        _, pieces = cv2.connectedComponents(defect_mask.view(np.uint8))
        border = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
        defect_mask = defect_mask & ~np.isin(pieces, np.flatnonzero(np.bincount(border) > _CUT))
    blend_mask = cv2.dilate(defect_mask.astype(np.uint8), _disc(RIM)) > 0
    return DefectPatch(np.ascontiguousarray(image.transpose(1, 2, 0)), blend_mask, defect_mask, annotated=True)


def extract(image: FloatArray) -> DefectPatch:
    """The patch of a network's image [C, S, S], its mask found by watershed (section 2.3); it may be empty.

    The markers are the pure background, and what is nearly as bright as a content's rim; between them the steepest
    edge decides, and a dark defect within its rim falls to the patch. The outermost two pixels are half
    background: their values are continued from inside, and the defect_mask leaves them out. What of it is the defect
    shows when the patch lies on a photograph.
    """
    level = image.max(axis=0)
    rim = _LOWEST + (1 - _LOWEST) / 2
    markers = np.zeros(level.shape, np.int32)
    markers[level < _PURE + 0.25 * (rim - _PURE)] = 1
    markers[level > _PURE + 0.7 * (rim - _PURE)] = 2
    dx, dy = (cv2.Sobel(level, cv2.CV_32F, i, 1 - i) for i in (1, 0))
    blend_mask = clean(watershed(np.hypot(dx, dy), markers) == 2)
    inner = cv2.erode(blend_mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if not inner.any():
        return DefectPatch(np.zeros((*level.shape, len(image)), np.float32), inner, inner)
    pixels = (np.clip(image, _LOWEST, 1) - _LOWEST) * (2 / (1 - _LOWEST)) - 1
    pixels = _companded(np.ascontiguousarray(pixels.transpose(1, 2, 0), np.float32), 1 / _COMPANDING)
    # Parts too thin to have an inside are drafts of the network, not defects.
    blend_mask = cv2.dilate(inner.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return DefectPatch(_continued(pixels, inner), blend_mask, inner)


def resize(patch: DefectPatch, scale: float) -> DefectPatch:
    """A patch at another scale."""
    if scale == 1:
        return patch
    height, width = (max(1, round(length * scale)) for length in patch.blend_mask.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    pixels = cv2.resize(patch.pixels, (width, height), interpolation=how).reshape(height, width, -1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    blend_mask, defect_mask = (
        cv2.resize(each.astype(np.float32), (width, height), interpolation=how) >= 0.5
        for each in (patch.blend_mask, patch.defect_mask)
    )
    return replace(
        patch,
        pixels=np.clip(pixels, -1, 1).astype(np.float32),
        blend_mask=blend_mask | defect_mask,
        defect_mask=defect_mask if defect_mask.any() else blend_mask,  # a line may be too thin for the smaller grid
        coarseness=max(1.0, patch.coarseness * scale),
    )


def turn(width: int, height: int, degrees: float, scale: float, *, mirrored: bool = False) -> NDArray[np.float64]:
    """The affine matrix [2, 3] that turns and scales an image about its middle, which it keeps at its place."""
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale), np.float64)
    if mirrored:
        matrix[:, 2] += matrix[:, 0] * width
        matrix[:, 0] *= -1
    return matrix


def _continued(pixels: FloatArray, inside: BoolArray) -> FloatArray:
    """The pixels [H, W, C], each one outside taking the value of the nearest inside."""
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros((int(nearest.max()) + 1, pixels.shape[2]), np.float32)
    values[nearest[inside]] = pixels[inside]
    return values[nearest]


def _disc(radius: int) -> NDArray[np.uint8]:
    side = 2 * radius + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
