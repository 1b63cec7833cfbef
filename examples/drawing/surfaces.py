"""The surfaces of four products. Each call draws another piece; the board is in `board.py`."""

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from .scene import Array, Rng, Scene, blur, falloff, flat, grid, lamp, noise, step

SCALE = 2


def fine(size: tuple[int, int]) -> tuple[int, int]:
    """The grid of an image of so many rows and columns."""
    return size[0] * SCALE, size[1] * SCALE


def strokes(rng: Rng, shape: tuple[int, int], length: int, share: float) -> Array:
    """Marks along x of a brush, each of one depth, [H, W] with standard deviation 1."""
    hits = np.where(rng.random(shape) < share / length, rng.normal(size=shape), 0)
    marks = gaussian_filter1d(uniform_filter1d(hits, length, axis=1, mode="wrap"), length / 8, axis=1, mode="wrap")
    return np.asarray(marks / marks.std())


def steel(rng: Rng, size: tuple[int, int]) -> Scene:
    """Brushed sheet, gray: strokes of several lengths along x, and a band where they reflect the lamp."""
    shape = fine(size)
    hairs = np.sum([weight * strokes(rng, shape, n, share) for n, share, weight in _BRUSH], axis=0)
    hairs = hairs + 0.5 * noise(rng, shape, (1.1, 120)) + 0.6 * noise(rng, shape, (4, 300))
    tilt = np.tan(rng.normal(0, 0.012))
    turn = np.array([[1, 0, 0], [tilt, 1, 0]])
    hairs = np.asarray(cv2.warpAffine(hairs, turn, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
    hairs = np.asarray((hairs - hairs.mean()) / hairs.std())
    y, x = grid(shape)
    source = lamp(rng, -2.2, 0.85)
    drift = (x / shape[1] - rng.uniform(0.15, 0.85)) * 0.42 + 0.05 * (y / shape[0] - 0.5)
    waves = noise(rng, shape, (40, 150)) * 0.4
    return Scene(
        scale=SCALE,
        height=0.16 * hairs + waves,
        albedo=(0.30 * (1 + 0.05 * hairs + 0.03 * noise(rng, shape, 0.7) + 0.02 * noise(rng, shape, 30)))[..., None],
        gloss=np.clip(0.34 * (1 + 0.18 * hairs + 0.03 * noise(rng, shape, (12, 90))), 0.05, None),
        lamp=source,
        shade=falloff(rng, shape, source, 0.10),
        mirror=np.stack([0 * drift, drift]),
        lobe=(0.6, 0.13),
        bare=flat(shape, 0.36),
        fresh=flat(shape, 0.85),
        below=flat(shape, 0),
        solid=np.ones(shape),
        opaque=(0.6,),
        grain=2.2,
    )


_BRUSH = ((40, 0.4, 0.6), (110, 0.30, 1.1), (300, 0.2, 1.2))  # cells long, share of cells, weight


def ceramic(rng: Rng, size: tuple[int, int]) -> Scene:
    """A glazed tile, colour: iron specks with soft halos below a glaze that waves and mirrors a soft box."""
    shape = fine(size)
    y, x = grid(shape)
    dust = np.clip(noise(rng, shape, 0.9) - 1.8, 0, 1)
    specks = step((noise(rng, shape, 1.8) - 2.45) * 2.2)
    blots = step((noise(rng, shape, 3.6) - 2.75) * 2)
    halo = np.clip(blur(specks, 4) * 2.0 + blur(blots, 7) * 1.6, 0, 1)
    iron = np.clip(0.35 * dust + 0.75 * specks + 0.7 * blots, 0, 0.85)
    base = np.array([0.60, 0.535, 0.425]) * rng.uniform(0.95, 1.05)
    cloud = 1 + 0.03 * noise(rng, shape, 26) + 0.02 * noise(rng, shape, 9) + 0.015 * noise(rng, shape, 1.2)
    tint = 1 + 0.02 * noise(rng, shape, 50)[..., None] * np.array([1.0, 0.1, -1.2])
    body = base * cloud[..., None] * tint
    body = body * (1 - halo[..., None] * np.array([0.16, 0.24, 0.36]))
    albedo = body * (1 - iron[..., None]) + iron[..., None] * np.array([0.16, 0.09, 0.05])
    source = lamp(rng, -2.3, 0.95)
    place = rng.uniform(0.1, 0.35), rng.uniform(0.15, 0.6)
    drift = np.stack([y / shape[0] - place[0], x / shape[1] - place[1]]) * 0.30
    waves = 0.6 * noise(rng, shape, 45) + 0.07 * noise(rng, shape, 16) + 0.006 * noise(rng, shape, 4)
    return Scene(
        scale=SCALE,
        height=waves + 0.25 * blur(blots, 2),
        albedo=np.asarray(albedo),
        gloss=np.full(shape, 0.16) * (1 - 0.3 * iron),
        lamp=source,
        shade=falloff(rng, shape, source, 0.10),
        mirror=drift,
        lobe=(0.05, 0.062),
        edge=6,
        bare=flat(shape, 0.50, 0.30, 0.19),
        fresh=flat(shape, 0.85, 0.82, 0.75),
        below=flat(shape, 0, 0, 0),
        solid=np.ones(shape),
        coat=1.5 * SCALE,
    )


def yarns(rng: Rng, at: Array, pitch: float, sway: Array) -> tuple[Array, Array]:
    """The number of the yarn that passes each cell, and that plus how far across it, 0 to 1; their widths differ."""
    count = int(at.max() / pitch) + 12
    borders = np.concatenate([[0.0], np.cumsum(pitch * np.clip(rng.normal(1, 0.10, count), 0.7, 1.3))]) - 4 * pitch
    place = np.interp(at + sway, borders, np.arange(count + 1.0))
    return np.floor(place), place


def fabric(rng: Rng, size: tuple[int, int]) -> Scene:
    """A plain weave, colour: blue warp and pale weft of uneven thickness, twisted fibres, and loose ones."""
    shape = fine(size)
    y, x = grid(shape)
    pitch = 5.6 * SCALE, 5.0 * SCALE
    bend = 2.2 * noise(rng, shape, 70), 2.2 * noise(rng, shape, 70)
    i, u = yarns(rng, x, pitch[1], 0.6 * noise(rng, shape, (30, 6)) + bend[0])
    j, v = yarns(rng, y, pitch[0], 0.6 * noise(rng, shape, (6, 30)) + bend[1])
    a, b = 2 * (u - i) - 1, 2 * (v - j) - 1
    thick_warp = 0.98 + 0.10 * noise(rng, shape, (26, 3.5))
    thick_weft = 0.98 + 0.13 * noise(rng, shape, (3.5, 40))
    rise = 1.5 * SCALE
    over = rise * 0.55 * np.where(i % 2 == 0, 1, -1) * np.cos(np.pi * (v - 0.5))
    under = -rise * 0.55 * np.where(j % 2 == 0, 1, -1) * np.cos(np.pi * (u - 0.5))
    warp = over + rise * np.sqrt(np.clip(1 - (a / thick_warp) ** 2, 0.02, 1))
    weft = under + rise * np.sqrt(np.clip(1 - (b / thick_weft) ** 2, 0.02, 1))
    front = warp > weft
    twist = noise(rng, shape, (0.8, 4.5), turn=1.15), noise(rng, shape, (0.8, 4.5), turn=0.35)
    fibre = np.where(front, twist[0], twist[1])
    shades = rng.normal(0, 0.09, 400), rng.normal(0, 0.05, 400)
    of_yarn = np.where(front, shades[0][i.astype(int) % 400], shades[1][j.astype(int) % 400])
    color = np.where(front[..., None], np.array([0.085, 0.15, 0.27]), np.array([0.50, 0.52, 0.53]))
    worn = 1 + of_yarn + 0.13 * fibre + 0.04 * noise(rng, shape, 40) + 0.06 * noise(rng, shape, 1)
    albedo = color * worn[..., None]
    fuzz = hairs(rng, shape, 90)
    albedo = albedo + fuzz[..., None] * (np.array([0.42, 0.46, 0.5]) - albedo) * 0.5
    source = lamp(rng, -2.2, 0.75)
    gap = np.minimum(np.maximum(warp, weft), 0.6 * rise)
    return Scene(
        scale=SCALE,
        height=np.maximum(warp, weft) + 0.22 * fibre + fuzz,
        albedo=np.asarray(np.clip(albedo * (0.55 + 0.45 * step(gap / (0.6 * rise)))[..., None], 0.01, 1)),
        gloss=np.full(shape, 0.02),
        lamp=source,
        shade=falloff(rng, shape, source, 0.08),
        mirror=np.zeros((2, *shape)),
        lobe=(0.5, 0.5),
        bare=flat(shape, 0.3, 0.3, 0.3),
        fresh=flat(shape, 0.5, 0.5, 0.5),
        below=flat(shape, 0, 0, 0),
        solid=np.ones(shape),
        residue=(0.05, 0.03, 0.01),
        opaque=(0.55, 0.72, 0.95),
        threads=pitch[0],
    )


def hairs(rng: Rng, shape: tuple[int, int], count: int) -> Array:
    """Loose fibres, [H, W] from 0 to 1."""
    canvas = np.zeros(shape, np.uint8)
    for _ in range(count):
        start, turn = rng.uniform(0, shape), rng.uniform(0, 2 * np.pi)
        turns = turn + np.cumsum(rng.normal(0, 0.16, rng.integers(10, 34)))
        points = start + np.cumsum(np.stack([np.sin(turns), np.cos(turns)], axis=1), axis=0) * 1.6
        line = np.rint(points[:, ::-1] * 16).astype(np.int32)
        cv2.polylines(canvas, [line], False, int(rng.integers(90, 240)), 1, cv2.LINE_AA, 4)
    return canvas / 255.0


def cast(rng: Rng, size: tuple[int, int]) -> Scene:
    """A cast flange with turned faces on a dark mat, gray: three lugs, a bore, a number, and a shadow."""
    shape = fine(size)
    y, x = grid(shape)
    s = SCALE * size[0] / 300
    cy, cx = (np.array(shape) / 2 + rng.normal(0, 3 * s, 2)).tolist()
    turn = rng.uniform(0, 2 * np.pi)
    wobble = 0.5 * s * noise(rng, shape, 14 * s) + 0.15 * s * noise(rng, shape, 3 * s)
    radius, angle = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx)
    lugs = [(cy + 96 * s * np.sin(turn + k), cx + 96 * s * np.cos(turn + k)) for k in np.arange(3) * 2 * np.pi / 3]
    around = [np.hypot(y - ly, x - lx) for ly, lx in lugs]
    inside = soft_max([92 * s - radius, *(31 * s - lug for lug in around)], 5 * s) + wobble
    top = 13 * s * np.sqrt(1 - (1 - np.clip(inside / (9 * s), 0, 1)) ** 2)

    skin = 0.40 * noise(rng, shape, 0.6 * s) + 0.55 * noise(rng, shape, 1.3 * s) + 0.8 * noise(rng, shape, 3.2 * s)
    pores = step((noise(rng, shape, 1.0 * s) - 2.3) * 2)
    number = letters(shape, (cy, cx), turn + np.pi / 3, 76 * s, f"{rng.integers(1, 9)}C {rng.integers(10, 99)}", s)
    height = top + 2.2 * s * number + 0.30 * s * skin - 0.5 * s * pores
    dip = 2.2 * s * step((87 * s - radius) / (5 * s)) * step((radius - 56 * s) / (5 * s))
    height = height - dip

    ring = step((radius - 29 * s) / s) * step((54 * s - radius) / s)  # turned faces
    seat = np.max([step((lug - 9 * s) / s) * step((16.5 * s - lug) / s) for lug in around], axis=0)
    bores = np.max([step((28 * s - radius) / (1.2 * s)), *(step((9 * s - lug) / (1.2 * s)) for lug in around)], axis=0)
    swirl = turned(rng, radius, 0.5 * s)
    small = turned(rng, np.min(around, axis=0), 0.5 * s)
    height = height * (1 - ring) + ring * (17 * s + 0.10 * swirl)
    height = height * (1 - seat) + seat * (11.4 * s + 0.10 * small)
    height = height * (1 - bores) - 6 * s * bores
    machined = np.maximum(ring, seat)
    part = step(inside / s + 0.5) * (1 - bores)

    source = lamp(rng, -2.25, 0.80)
    shadow = cast_shadow(step(inside / s + 0.5), source, 12 * s)
    mat = 0.11 * (1 + 0.16 * noise(rng, shape, 0.9 * s) + 0.10 * noise(rng, shape, 5 * s)) + 0.10 * lint(rng, shape, s)
    mat = mat * (1 - 0.7 * shadow) * (1 - bores * 0.6)
    grit = 0.29 * (1 + 0.07 * noise(rng, shape, 0.8 * s) + 0.05 * noise(rng, shape, 8 * s) - 0.25 * pores)
    metal = 0.33 * (1 + 0.035 * swirl + 0.02 * noise(rng, shape, 0.6 * s))
    albedo = mat * (1 - part) + part * (grit * (1 - machined) + metal * machined)
    # Turned grooves reflect the lamp along the two rays on which they lie across its direction.
    facing = np.abs(np.cos(angle - np.arctan2(source[0], source[1]) - 0.2))
    rays = np.exp(-(((1 - facing) / 0.16) ** 2)) * (1 + 0.25 * swirl)
    gloss = part * (
        (1 - machined) * 0.05 * (1 + 0.4 * noise(rng, shape, 0.7 * s)) + ring * (0.08 + 0.42 * rays) + seat * 0.2
    )
    return Scene(
        scale=SCALE,
        height=np.asarray(height * part),
        albedo=np.asarray(albedo)[..., None],
        gloss=np.clip(gloss, 0, None),
        lamp=source,
        shade=falloff(rng, shape, source, 0.10),
        mirror=np.zeros((2, *shape)),
        lobe=(0.35, 0.35),
        bare=flat(shape, 0.40),
        fresh=flat(shape, 0.6),
        below=np.asarray(mat)[..., None],
        solid=np.asarray(part),
        places=np.argwhere((inside > 5 * s) & (bores < 0.01) & (seat < 0.01)).astype(float),
        rims=np.argwhere(np.abs(inside) < 0.6).astype(float),
    )


def soft_max(values: list[Array], soft: float) -> Array:
    """The largest of some arrays, rounded where two are equal."""
    return np.asarray(soft * np.log(sum(np.exp(np.clip(each / soft, -30, 30)) for each in values)))


def turned(rng: Rng, radius: Array, width: float) -> Array:
    """The marks of a lathe, which depend on the radius alone, with standard deviation 1."""
    marks = noise(rng, (1, 4096), (0.1, 3.2))[0] + 0.8 * noise(rng, (1, 4096), (0.1, 14))[0]
    return np.asarray(np.interp(radius / width * 4, np.arange(4096), marks / marks.std()))


def letters(
    shape: tuple[int, int], center: tuple[float, float], turn: float, radius: float, text: str, s: float
) -> Array:
    """Raised text on a circle's radius, [H, W] from 0 to 1."""
    canvas = np.zeros(shape, np.uint8)
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42 * s, max(int(1.3 * s), 1))
    at = int(shape[1] / 2 - wide / 2), int(shape[0] / 2 + high / 2)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42 * s, 255, max(int(1.3 * s), 1), cv2.LINE_AA)
    matrix = cv2.getRotationMatrix2D((shape[1] / 2, shape[0] / 2), -np.degrees(turn) - 90, 1.0)
    matrix[:, 2] += [center[1] - shape[1] / 2 + radius * np.cos(turn), center[0] - shape[0] / 2 + radius * np.sin(turn)]
    return blur(np.asarray(cv2.warpAffine(canvas, matrix, shape[::-1], flags=cv2.INTER_LINEAR) / 255.0), 0.7 * s)


def cast_shadow(part: Array, lamp: Array, thickness: float) -> Array:
    """Where a part of so many cells' thickness keeps the light from what lies below, [H, W] from 0 to 1."""
    reach = thickness / lamp[2]
    shadow = part
    for share in (0.25, 0.5, 0.75, 1):
        dy, dx = -lamp[0] * reach * share, -lamp[1] * reach * share
        moved = cv2.warpAffine(part, np.array([[1, 0, dx], [0, 1, dy]]), part.shape[::-1], flags=cv2.INTER_LINEAR)
        shadow = np.maximum(shadow, moved)
    return np.clip(0.7 * blur(shadow, 2.5) + 0.3 * blur(shadow, 12), 0, 1)


def lint(rng: Rng, shape: tuple[int, int], s: float) -> Array:
    """Dust on the mat, [H, W] from 0 to 1."""
    return step((noise(rng, shape, 0.7 * s) - 3.1) * 2) * 0.8
