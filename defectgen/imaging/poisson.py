"""Improved Poisson blending of a defect patch into a normal image (DCDGANc, section 2.3).

Symbols: M the mask, I_d the patch ("defect content" in the paper), I_n the normal background, M_w the boundary
weights, I_αn the background with the border of the patch blended in by M_w (equation 8), Ω the region to solve for,
∂Ω its boundary.

Equation 9 minimizes |∇p_d - ∇I_d|² with p_d = I_αn on ∂Ω. It is solved for the correction h = p_d - I_d, which is
harmonic in Ω and therefore smooth: a multigrid solver needs only a few passes of fast OpenCV functions.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.errors import BadInputError

Mode = Literal["improved", "poisson", "alpha"]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

BORDER = 5
"""Pixels over which the patch fades in at the border of its mask (section 2.3)."""

_SWEEPS = 3  # smoothing sweeps before and after each coarser level
_COARSEST = 8  # largest side of the coarsest grid, in pixels
_COARSEST_SWEEPS = 8
_INSIDE = 0.9  # a coarse pixel is in Ω if (nearly) all of it is: lower values fill holes in Ω and the solver diverges
_CYCLES = 40  # maximum number of V-cycles; usually two or three suffice
_TOLERANCE = 0.3  # accuracy, in gray levels of an 8-bit image
_OVERHEAD = 40_000  # the fixed cost of a region, as the number of pixels that take as long


def blend(
    content: NDArray[Any],
    mask: NDArray[np.bool_],
    background: NDArray[Any],
    *,
    at: tuple[int, int] = (0, 0),
    border: int = BORDER,
    mode: Mode = "improved",
) -> NDArray[Any]:
    """Blend a patch into a background. Returns a new array that equals `background` outside the mask.

    Args:
        content: the patch, [h, w] or [h, w, C], in the units of the background, of any numeric type. C is 1 or the
            background's number of color channels. Only pixels inside `mask` are used, and in mode "poisson" also
            those next to it.
        mask: [h, w], boolean. It may touch the edges and have several parts.
        background: uint8 or uint16, [H, W] or [H, W, 3], or either with an additional alpha channel, which is kept.
        at: (x, y) of the patch's upper left corner in the background. Parts outside the background are clipped.
        border: pixels over which the patch fades in (M_w).
        mode: "improved" as in the paper; "poisson" (Pérez et al. 2003: Ω is the mask, with the background as its
            boundary); or "alpha" (the patch is pasted without blending).

    Raises:
        BadInputError: the mask is empty, or shapes or types do not match.
    """
    return Blender(mask, border=border, mode=mode).blend(content, background, at=at)


class Blender:
    """`blend` for one mask and many patches, backgrounds or positions. Computes what depends on the mask only once."""

    def __init__(self, mask: NDArray[np.bool_], *, border: int = BORDER, mode: Mode = "improved") -> None:
        self._mask = np.ascontiguousarray(mask)
        if self._mask.ndim != 2 or self._mask.dtype != np.bool_:
            raise BadInputError(
                f"mask: expected [height, width] of booleans, not {self._mask.shape} of {self._mask.dtype}"
            )
        if not self._mask.any():
            raise BadInputError("mask: it is empty, so there is nothing to blend; leave out this patch")
        if border < 0 or mode not in ("improved", "poisson", "alpha"):
            raise BadInputError(
                f"border {border}, mode {mode}: border must be 0 or more, mode improved, poisson or alpha"
            )
        self._border, self._mode = border, mode
        x, y, width, height = cv2.boundingRect(self._mask.view(np.uint8))
        self._box = y, x, y + height, x + width

    def blend(self, content: NDArray[Any], background: NDArray[Any], *, at: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """As the function `blend`, with the mask, border and mode of this object."""
        _check(content, self._mask, background)
        result = background.copy()
        (x, y), (height, width) = at, background.shape[:2]
        top, left, bottom, right = self._box
        inside = max(top, -y), max(left, -x), min(bottom, height - y), min(right, width - x)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            return result
        edges = inside[0] + y == 0, inside[1] + x == 0, inside[2] + y == height, inside[3] + x == width
        plan = self._whole if inside == self._box and not any(edges) else self._plan(inside, edges)
        # One more pixel on each side, except at the edges of the background: the computed part includes ∂Ω.
        above, before, below, after = (int(not edge) for edge in edges)
        top, left, bottom, right = inside[0] - above, inside[1] - before, inside[2] + below, inside[3] + after
        target = _color_channels(result[top + y : bottom + y, left + x : right + x])
        blended = _solve(plan, _crop(content, top, left, bottom, right, target), target.astype(np.float32), self._mode)
        blended = np.clip(np.rint(blended), 0, np.iinfo(result.dtype).max).astype(result.dtype)
        np.copyto(target, blended, where=_per_channel(plan.weight > 0, blended))
        return result

    @cached_property
    def _whole(self) -> "_Plan":
        """The plan for positions where the mask does not touch the edges of the background."""
        return self._plan(self._box, (False,) * 4)

    def _plan(self, inside: tuple[int, int, int, int], edges: tuple[bool, ...]) -> "_Plan":
        top, left, bottom, right = inside
        above, before, below, after = (int(not edge) for edge in edges)
        mask = np.pad(self._mask[top:bottom, left:right], ((above, below), (before, after)))
        return _plan(mask, self._border, self._mode)


@dataclass(frozen=True)
class _Plan:
    """What depends on the mask only: M_w, [H, W], and the parts of Ω, each with its place in [H, W]."""

    weight: FloatArray
    regions: list[tuple[tuple[slice, slice], "_Grids"]]


def _plan(mask: NDArray[np.bool_], border: int, mode: Mode) -> _Plan:
    if mode == "alpha":
        return _Plan(mask.astype(np.float32), [])
    if mode == "poisson":
        # Ω is the mask, I_αn is the background everywhere, and the solution replaces it in Ω.
        return _Plan(mask.astype(np.float32), _regions(mask))
    weight, distance = _weights(mask, border)
    # Ω is the part deeper than the border, where I_αn equals the patch. ∂Ω is the innermost pixel of the border.
    return _Plan(weight, _regions(distance > max(border, 1)))


def boundary_weights(mask: NDArray[np.bool_], border: int = BORDER) -> FloatArray:
    """M_w, [H, W]: 0 outside the mask, rising to 1 over `border` pixels from its outline inwards.

    Parts of the mask that are thinner than two borders would not reach 1, and the patch would be lost there. In such
    parts the ramp is as long as the part is deep. The edges of the array do not count as outline.
    """
    return _weights(mask, border)[0]


def _weights(mask: NDArray[np.bool_], border: int) -> tuple[FloatArray, FloatArray]:
    """M_w, and the distance of each pixel to the outside of the mask: [H, W] each."""
    if mask.all():
        return np.ones(mask.shape, np.float32), np.full(mask.shape, np.inf, np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    side = 2 * border + 3
    depth = cv2.dilate(np.minimum(distance, border + 1), np.ones((side, side), np.uint8))
    weight = np.minimum(distance / np.maximum(depth, 1), 1)
    return np.asarray(weight, np.float32), np.asarray(distance, np.float32)


def _solve(plan: _Plan, content: FloatArray, background: FloatArray, mode: Mode) -> FloatArray:
    """I_IPB (equations 8 to 10). Both images and the result are [H, W] or [H, W, 3]."""
    weight = _per_channel(plan.weight, content)
    composite = background + weight * (content - background)
    h = (background if mode == "poisson" else composite) - content
    for place, grids in plan.regions:
        correction = np.ascontiguousarray(h[place])
        # One of 255 gray levels. Relative to the range of the values, as 16-bit images rarely use their full range.
        unit = max(1.0, float(np.ptp(background[place])) / 255)
        grids.solve(correction, _TOLERANCE * unit)
        np.copyto(composite[place], content[place] + correction, where=_per_channel(grids.masks[0] > 0, correction))
    return composite


def _check(content: NDArray[Any], mask: NDArray[np.bool_], background: NDArray[Any]) -> None:
    if background.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"background: its type is {background.dtype}, not uint8 or uint16")
    if content.shape[:2] != mask.shape:
        raise BadInputError(
            f"mask: its shape is {mask.shape}, but the patch has {content.shape[:2]}; they must be equal"
        )
    channels = 1 if _color_channels(background).ndim == 2 else 3
    if content.ndim == 3 and content.shape[2] not in (1, channels):
        raise BadInputError(
            f"content: the patch has {content.shape[2]} color channels, but the background has {channels}"
        )


def _color_channels(image: NDArray[Any]) -> NDArray[Any]:
    """A view of an image without its alpha channel: [H, W] or [H, W, 3]."""
    if image.ndim == 2:
        return image
    return image[..., 0] if image.shape[2] <= 2 else image[..., :3]


def _crop(content: NDArray[Any], top: int, left: int, bottom: int, right: int, like: NDArray[Any]) -> FloatArray:
    """A part of the patch, as floats with the color channels of `like`. Beyond its edges pixels are repeated."""
    height, width = content.shape[:2]
    inside = content[max(top, 0) : bottom, max(left, 0) : right].astype(np.float32)
    beyond = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if any(beyond):
        inside = np.asarray(cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE), np.float32)
    if like.ndim == 2:
        return inside.reshape(like.shape)
    return np.broadcast_to(inside if inside.ndim == 3 else inside[..., None], like.shape)


def _per_channel(values: NDArray[Any], image: FloatArray) -> NDArray[Any]:
    """Values [H, W], with a channel axis if the image has one, so that they broadcast over its channels."""
    return values if image.ndim == 2 else values[..., None]


# --- Laplace's equation on a mask ------------------------------------------------------------------------------


def _regions(omega: NDArray[np.bool_]) -> list[tuple[tuple[slice, slice], "_Grids"]]:
    """The grids of Ω: one for all of it, or one for each connected part if that is faster (`_OVERHEAD`)."""
    x, y, w, h = cv2.boundingRect(omega.view(np.uint8))
    if w == 0:
        return []
    whole = _expanded(x, y, w, h, omega)
    if w * h > 2 * _OVERHEAD:
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(omega.view(np.uint8), connectivity=4)
        if _OVERHEAD + w * h > sum(_OVERHEAD + w * h for _, _, w, h, _ in statistics[1:].tolist()):
            boxes = [_expanded(x, y, w, h, omega) for x, y, w, h, _ in statistics[1:].tolist()]
            return [(box, _Grids(labels[box] == label)) for label, box in enumerate(boxes, start=1)]
    return [(whole, _Grids(omega[whole]))]


def _expanded(x: int, y: int, width: int, height: int, omega: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A box expanded by one pixel for ∂Ω, clipped at the edges of the array."""
    return (
        slice(max(y - 1, 0), min(y + height + 1, omega.shape[0])),
        slice(max(x - 1, 0), min(x + width + 1, omega.shape[1])),
    )


class _Grids:
    """Ω at full and successively halved resolution, and the multigrid solver for h.

    h is known outside Ω, where only the pixels next to Ω are used. At the edges of the array its slope is 0.
    Arrays are [H, W] or [H, W, 3].
    """

    def __init__(self, omega: NDArray[np.bool_]) -> None:
        first = omega.astype(np.uint8)
        self.masks = [first]
        while max(self.masks[-1].shape) > _COARSEST:
            coarser = (_halved(self.masks[-1].astype(np.float32), cv2.BORDER_REPLICATE) > _INSIDE).astype(np.uint8)
            if not coarser.any():
                break
            self.masks.append(coarser)
        self._known = [np.asarray(cv2.dilate(first, _cross()) - first, np.float32)]
        while max(self._known[-1].shape) > _COARSEST:
            self._known.append(_halved(self._known[-1]))
        self._unknown = [first, *((known == 0).astype(np.uint8) for known in self._known[1:])]

    def solve(self, h: FloatArray, tolerance: float) -> None:
        """Solve for h inside Ω, in place, to within `tolerance`."""
        self._guess(h)
        last = math.inf
        for _ in range(_CYCLES):
            before = h.copy()
            self._cycle(0, h, None)
            change = cv2.norm(h, before, cv2.NORM_INF)
            rate = min(change / last, 0.9) if last < math.inf else 0.5
            if change * rate / (1 - rate) < tolerance:  # the sum of all further changes, at this rate
                break
            last = max(change, 1e-9)

    def _guess(self, h: FloatArray) -> None:
        """The initial guess, from coarse to fine: means of the known values, smoothly continued into Ω."""
        sums = [h * _per_channel(self._known[0], h)]
        for _ in self._known[1:]:
            sums.append(_halved(sums[-1]))
        guess = np.zeros_like(sums[-1])
        guess[...] = sums[-1].sum(axis=(0, 1)) / max(float(self._known[-1].sum()), 1e-9)
        for level in reversed(range(len(sums))):
            values = sums[level] / _per_channel(np.maximum(self._known[level], 1e-9), h) if level else h
            cv2.copyTo(_doubled(guess, values) if level < len(sums) - 1 else guess, self._unknown[level], values)
            if level == len(sums) - 1:
                _smooth(values, self._unknown[level], None, _COARSEST_SWEEPS, lowest=0.1)
            else:
                _smooth(values, self._unknown[level], None, _SWEEPS)
            guess = values

    def _cycle(self, level: int, h: FloatArray, rhs: FloatArray | None) -> None:
        """One V-cycle for the equation (h - mean of its four neighbors) = rhs on a level's Ω, in place."""
        mask = self.masks[level]
        if level == len(self.masks) - 1:
            _smooth(h, mask, rhs, _COARSEST_SWEEPS, lowest=0.1)
            return
        _smooth(h, mask, rhs, _SWEEPS)
        residual = cv2.subtract(cv2.filter2D(h, -1, _kernel(1.0), borderType=cv2.BORDER_REPLICATE), h)
        if rhs is not None:
            residual = cv2.add(residual, rhs)
        masked = np.zeros_like(h)
        cv2.copyTo(residual, mask, masked)
        coarse = _halved(masked)
        coarse *= 4  # coarse pixels are twice as wide, and the operator is a second difference
        error = np.zeros_like(coarse)
        self._cycle(level + 1, error, coarse)
        cv2.copyTo(cv2.add(h, _doubled(error, h)), mask, h)
        _smooth(h, mask, rhs, _SWEEPS)


def _smooth(h: FloatArray, mask: ByteArray, rhs: FloatArray | None, sweeps: int, lowest: float = 0.5) -> None:
    """Jacobi sweeps inside the mask, in place, with Chebyshev weights for eigenvalues from `lowest` to 2.

    The eigenvalues are those of the operator (1 - mean of neighbors). Errors that coarser grids cannot represent have
    eigenvalues of 1/2 and more: three sweeps reduce them to 1/13. On the coarsest grid all are at least 1/10.
    """
    for weight in _chebyshev(sweeps, lowest):
        new = cv2.filter2D(h, -1, _kernel(weight), borderType=cv2.BORDER_REPLICATE)
        if rhs is not None:
            new = cv2.scaleAdd(rhs, weight, new)
        cv2.copyTo(new, mask, h)


@cache
def _chebyshev(sweeps: int, lowest: float) -> tuple[float, ...]:
    middle, reach = (2 + lowest) / 2, (2 - lowest) / 2
    return tuple(1 / (middle + reach * math.cos(math.pi * (2 * i + 1) / (2 * sweeps))) for i in range(sweeps))


@cache
def _kernel(weight: float) -> FloatArray:
    """The kernel of a damped Jacobi step: the weighted mean of a pixel and its four neighbors."""
    w = weight / 4
    return np.array([[0, w, 0], [w, 1 - weight, w], [0, w, 0]], np.float32)


@cache
def _cross() -> ByteArray:
    return np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def _halved(values: FloatArray, beyond: int = cv2.BORDER_CONSTANT) -> FloatArray:
    """Halve the resolution by averaging 2x2 pixels. An odd side is padded with zeros, or by border type `beyond`."""
    height, width = values.shape[:2]
    if height % 2 or width % 2:
        values = np.asarray(cv2.copyMakeBorder(values, 0, height % 2, 0, width % 2, beyond), np.float32)
    size = (width + 1) // 2, (height + 1) // 2
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _doubled(values: FloatArray, like: FloatArray) -> FloatArray:
    """Double the resolution by linear interpolation, cropped to the shape of `like`."""
    size = 2 * values.shape[1], 2 * values.shape[0]
    doubled = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)
    return doubled[: like.shape[0], : like.shape[1]]
