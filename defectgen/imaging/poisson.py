"""Improved Poisson blending: a defect's content onto a normal photograph (dcdganc.txt, section 2.3).

The symbols: M the mask, I_d the defect's content, I_n the normal background, M_w the boundary weights, I_αn the
background with the content's border laid over it (equation 8), Ω the region that is solved for, ∂Ω its boundary.

Equation 9, |∇p_d - ∇I_d|² made least with p_d = I_αn on ∂Ω, is solved for the correction h = p_d - I_d alone. It is
harmonic in Ω, hence smooth, and a multigrid solver needs a few cheap passes of OpenCV over it.
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
"""Pixels over which the content fades in at the border of its mask (section 2.3)."""

_SWEEPS = 3  # smoothing sweeps before and after each coarser level
_COARSEST = 8  # pixels a side at most
_COARSEST_SWEEPS = 8
_INSIDE = 0.9  # a coarse pixel is solved for if all of it lies in Ω: with less, holes in Ω vanish and it diverges
_CYCLES = 40  # at most; two or three are usual
_TOLERANCE = 0.3  # gray levels of 255
_OVERHEAD = 40_000  # pixels that take as long as a region's fixed costs


def blend(
    content: NDArray[Any],
    mask: NDArray[np.bool_],
    background: NDArray[Any],
    *,
    at: tuple[int, int] = (0, 0),
    border: int = BORDER,
    mode: Mode = "improved",
) -> NDArray[Any]:
    """`background` with the masked content blended into it; a new array, equal to `background` outside the mask.

    Args:
        content: [h, w] or [h, w, C], in the background's units, of any numeric type. C is the background's number
            of colours, or 1. Only what `mask` covers is looked at; mode "poisson" looks a pixel further.
        mask: [h, w] of booleans; may touch any edge and have several parts.
        background: uint8 or uint16, [H, W], [H, W, 3], or either with a last channel of alpha, which is kept.
        at: (x, y) of the content's upper left corner in the background. What sticks out is clipped.
        border: pixels over which the content fades in (M_w).
        mode: "improved" as the paper, "poisson" (Pérez et al. 2003, Ω the mask, the boundary all background) or
            "alpha" (the mask cut out and laid on).

    Raises:
        BadInputError: a mask with no pixel; shapes or types that do not fit.
    """
    return Blender(mask, border=border, mode=mode).blend(content, background, at=at)


class Blender:
    """`blend` for one mask and many contents, backgrounds or places: all that depends on the mask is made once."""

    def __init__(self, mask: NDArray[np.bool_], *, border: int = BORDER, mode: Mode = "improved") -> None:
        self._mask = np.ascontiguousarray(mask)
        if self._mask.ndim != 2 or self._mask.dtype != np.bool_:
            raise BadInputError(f"mask: {self._mask.dtype} {self._mask.shape}, not [height, width] of booleans")
        if not self._mask.any():
            raise BadInputError("mask: no pixel is set, so there is nothing to blend; leave this content out")
        if border < 0 or mode not in ("improved", "poisson", "alpha"):
            raise BadInputError(f"border {border}, mode {mode}: border is 0 or more, mode improved, poisson or alpha")
        self._border, self._mode = border, mode
        x, y, width, height = cv2.boundingRect(self._mask.view(np.uint8))
        self._box = y, x, y + height, x + width

    def blend(self, content: NDArray[Any], background: NDArray[Any], *, at: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """As the function `blend`."""
        _check(content, self._mask, background)
        result = background.copy()
        (x, y), (height, width) = at, background.shape[:2]
        top, left, bottom, right = self._box
        inside = max(top, -y), max(left, -x), min(bottom, height - y), min(right, width - x)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            return result
        edges = inside[0] + y == 0, inside[1] + x == 0, inside[2] + y == height, inside[3] + x == width
        plan = self._whole if inside == self._box and not any(edges) else self._plan(inside, edges)
        # A pixel more on each side that is not the photograph's own edge: a mask ends within what is computed.
        above, before, below, after = (int(not edge) for edge in edges)
        top, left, bottom, right = inside[0] - above, inside[1] - before, inside[2] + below, inside[3] + after
        target = _colours(result[top + y : bottom + y, left + x : right + x])
        blended = _solve(plan, _piece(content, top, left, bottom, right, target), target.astype(np.float32), self._mode)
        blended = np.clip(np.rint(blended), 0, np.iinfo(result.dtype).max).astype(result.dtype)
        np.copyto(target, blended, where=_spread(plan.weight > 0, blended))
        return result

    @cached_property
    def _whole(self) -> "_Plan":
        """The plan for wherever the mask lies well inside."""
        return self._plan(self._box, (False,) * 4)

    def _plan(self, inside: tuple[int, int, int, int], edges: tuple[bool, ...]) -> "_Plan":
        top, left, bottom, right = inside
        above, before, below, after = (int(not edge) for edge in edges)
        mask = np.pad(self._mask[top:bottom, left:right], ((above, below), (before, after)))
        return _plan(mask, self._border, self._mode)


@dataclass(frozen=True)
class _Plan:
    """What the mask decides: M_w, [H, W], and the parts of Ω, each with its slice of it."""

    weight: FloatArray
    regions: list[tuple[tuple[slice, slice], "_Grids"]]


def _plan(mask: NDArray[np.bool_], border: int, mode: Mode) -> _Plan:
    if mode == "alpha":
        return _Plan(mask.astype(np.float32), [])
    if mode == "poisson":
        # Ω is the mask; I_αn is the background throughout, and what shows in Ω is the solution.
        return _Plan(mask.astype(np.float32), _regions(mask))
    weight, distance = _weights(mask, border)
    # Ω is what lies deeper than the border, where I_αn is content alone; ∂Ω is the last pixel of the border.
    return _Plan(weight, _regions(distance > max(border, 1)))


def boundary_weights(mask: NDArray[np.bool_], border: int = BORDER) -> FloatArray:
    """M_w: 0 outside the mask, rising over `border` pixels with the distance to its outside, then 1. [H, W].

    A part of the mask that is thinner than two borders would never reach 1, and its content would be lost: there
    the ramp is as long as the part is deep. The array's edges are not a border.
    """
    return _weights(mask, border)[0]


def _weights(mask: NDArray[np.bool_], border: int) -> tuple[FloatArray, FloatArray]:
    """M_w, and the distances to the mask's outside."""
    if mask.all():
        return np.ones(mask.shape, np.float32), np.full(mask.shape, np.inf, np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    side = 2 * border + 3
    depth = cv2.dilate(np.minimum(distance, border + 1), np.ones((side, side), np.uint8))
    weight = np.minimum(distance / np.maximum(depth, 1), 1)
    return np.asarray(weight, np.float32), np.asarray(distance, np.float32)


def _solve(plan: _Plan, content: FloatArray, background: FloatArray, mode: Mode) -> FloatArray:
    """I_IPB (equations 8 to 10); both images and the result [H, W] or [H, W, 3]."""
    weight = _spread(plan.weight, content)
    composite = background + weight * (content - background)
    h = (background if mode == "poisson" else composite) - content
    for place, grids in plan.regions:
        correction = np.ascontiguousarray(h[place])
        # A gray level of 255; a 16-bit photograph seldom uses its range.
        unit = max(1.0, float(np.ptp(background[place])) / 255)
        grids.solve(correction, _TOLERANCE * unit)
        np.copyto(composite[place], content[place] + correction, where=_spread(grids.masks[0] > 0, correction))
    return composite


def _check(content: NDArray[Any], mask: NDArray[np.bool_], background: NDArray[Any]) -> None:
    if background.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"background: of type {background.dtype}, not uint8 or uint16")
    if content.shape[:2] != mask.shape:
        raise BadInputError(f"mask: is {mask.shape}, but the content {content.shape[:2]}; they must be equal")
    colours = 1 if _colours(background).ndim == 2 else 3
    if content.ndim == 3 and content.shape[2] not in (1, colours):
        raise BadInputError(f"content: has {content.shape[2]} colours, but the background {colours}")


def _colours(image: NDArray[Any]) -> NDArray[Any]:
    """A view of an image without its alpha: [H, W] or [H, W, 3]."""
    if image.ndim == 2:
        return image
    return image[..., 0] if image.shape[2] <= 2 else image[..., :3]


def _piece(content: NDArray[Any], top: int, left: int, bottom: int, right: int, like: NDArray[Any]) -> FloatArray:
    """That part of the content, as floats with the colours of `like`; beyond its edge the last pixels are repeated."""
    height, width = content.shape[:2]
    inside = content[max(top, 0) : bottom, max(left, 0) : right].astype(np.float32)
    beyond = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if any(beyond):
        inside = np.asarray(cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE), np.float32)
    if like.ndim == 2:
        return inside.reshape(like.shape)
    return np.broadcast_to(inside if inside.ndim == 3 else inside[..., None], like.shape)


def _spread(values: NDArray[Any], image: FloatArray) -> NDArray[Any]:
    """Values [H, W], so that they act on every colour of an image."""
    return values if image.ndim == 2 else values[..., None]


# --- Laplace's equation on a mask ------------------------------------------------------------------------------


def _regions(omega: NDArray[np.bool_]) -> list[tuple[tuple[slice, slice], "_Grids"]]:
    """Ω in one piece, or its parts apart where that leaves much of the array between them out."""
    x, y, w, h = cv2.boundingRect(omega.view(np.uint8))
    if w == 0:
        return []
    whole = _around(x, y, w, h, omega)
    if w * h > 2 * _OVERHEAD:
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(omega.view(np.uint8), connectivity=4)
        if _OVERHEAD + w * h > sum(_OVERHEAD + w * h for _, _, w, h, _ in statistics[1:].tolist()):
            boxes = [_around(x, y, w, h, omega) for x, y, w, h, _ in statistics[1:].tolist()]
            return [(box, _Grids(labels[box] == label)) for label, box in enumerate(boxes, start=1)]
    return [(whole, _Grids(omega[whole]))]


def _around(x: int, y: int, width: int, height: int, omega: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A box with the pixels around it, where ∂Ω lies; at the array's edges there is none."""
    return (
        slice(max(y - 1, 0), min(y + height + 1, omega.shape[0])),
        slice(max(x - 1, 0), min(x + width + 1, omega.shape[1])),
    )


class _Grids:
    """Ω at its own and ever coarser resolutions, and the solver for h on them.

    h is given outside Ω, where only the pixels next to it matter; at the array's edges its slope is 0. Arrays are
    [H, W] or [H, W, 3].
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
        """Fill h inside Ω, in place, to within `tolerance`."""
        self._guess(h)
        last = math.inf
        for _ in range(_CYCLES):
            before = h.copy()
            self._cycle(0, h, None)
            change = cv2.norm(h, before, cv2.NORM_INF)
            rate = min(change / last, 0.9) if last < math.inf else 0.5
            if change * rate / (1 - rate) < tolerance:  # all the changes that would follow at this rate
                break
            last = max(change, 1e-9)

    def _guess(self, h: FloatArray) -> None:
        """From coarse to fine: what is known in the mean, smoothed into what is not."""
        sums = [h * _spread(self._known[0], h)]
        for _ in self._known[1:]:
            sums.append(_halved(sums[-1]))
        guess = np.zeros_like(sums[-1])
        guess[...] = sums[-1].sum(axis=(0, 1)) / max(float(self._known[-1].sum()), 1e-9)
        for level in reversed(range(len(sums))):
            values = sums[level] / _spread(np.maximum(self._known[level], 1e-9), h) if level else h
            cv2.copyTo(_doubled(guess, values) if level < len(sums) - 1 else guess, self._unknown[level], values)
            if level == len(sums) - 1:
                _smooth(values, self._unknown[level], None, _COARSEST_SWEEPS, lowest=0.1)
            else:
                _smooth(values, self._unknown[level], None, _SWEEPS)
            guess = values

    def _cycle(self, level: int, h: FloatArray, rhs: FloatArray | None) -> None:
        """A V-cycle for h - mean of its neighbours = rhs on a level's Ω, in place."""
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
        coarse *= 4  # the pixels are twice as wide
        error = np.zeros_like(coarse)
        self._cycle(level + 1, error, coarse)
        cv2.copyTo(cv2.add(h, _doubled(error, h)), mask, h)
        _smooth(h, mask, rhs, _SWEEPS)


def _smooth(h: FloatArray, mask: ByteArray, rhs: FloatArray | None, sweeps: int, lowest: float = 0.5) -> None:
    """Jacobi sweeps inside the mask, in place, with Chebyshev's weights for eigenvalues from `lowest` to 2.

    They are those of 1 - mean. What coarser grids cannot see, from 1/2 on, shrinks to a thirteenth in three sweeps;
    on the coarsest grid nothing is below 1/10.
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
    """A pixel to the weighted mean of itself and its four neighbours."""
    w = weight / 4
    return np.array([[0, w, 0], [w, 1 - weight, w], [0, w, 0]], np.float32)


@cache
def _cross() -> ByteArray:
    return np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def _halved(values: FloatArray, beyond: int = cv2.BORDER_CONSTANT) -> FloatArray:
    """The means of 2x2 pixels; an odd last row or column is padded with zeros, or as `beyond` says."""
    height, width = values.shape[:2]
    if height % 2 or width % 2:
        values = np.asarray(cv2.copyMakeBorder(values, 0, height % 2, 0, width % 2, beyond), np.float32)
    size = (width + 1) // 2, (height + 1) // 2
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _doubled(values: FloatArray, like: FloatArray) -> FloatArray:
    """Interpolated to twice the size, as far as `like` reaches."""
    size = 2 * values.shape[1], 2 * values.shape[0]
    doubled = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)
    return doubled[: like.shape[0], : like.shape[1]]
