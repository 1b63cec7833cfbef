"""Five kinds of defects. Each changes the height, the colour and the gloss of a scene; the light does the rest.

They draw into a small scene, around a point y, x in its cells. Lengths are in pixels of the image times `scene.scale`.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from .scene import Array, Rng, Scene, blur, grid, noise, step

Defect = Callable[[Rng, Scene, Array], None]

LONGEST = 50  # pixels of the image, so that a defect fits into a window of 64


def walk(rng: Rng, length: float, turn: float, wander: float, kinks: float) -> Array:
    """Points half a cell apart, [N, 2] as y, x from 0: slow bends of `wander` radians, and sharp `kinks`."""
    count = max(int(2 * length), 8)
    t = np.arange(count) / 2
    knots = np.cumsum(rng.choice([1.5, 3, 6, 12], count) * rng.uniform(0.6, 1.4, count))
    jogs = rng.normal(0, kinks, count + 1)
    angle = (
        turn + jogs[np.searchsorted(knots, t)] + wander * np.interp(t, np.linspace(0, length, 6), rng.normal(size=6))
    )
    return np.cumsum(np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0) / 2


class Line:
    """Cells near a line: `where` they are, how far `away`, `at` which of its points, and how far on the `lit` side.

    That is the side away from the lamp, from 0 to 1: the wall of a groove that looks at the lamp, and its edge.
    """

    def __init__(self, scene: Scene, points: Array, reach: float) -> None:
        shape = scene.height.shape
        low = np.clip(np.floor(points.min(axis=0) - reach), 0, None).astype(int)
        high = np.minimum(np.ceil(points.max(axis=0) + reach + 1), shape).astype(int)
        self.where = slice(low[0], high[0]), slice(low[1], high[1])
        cells = np.moveaxis(np.asarray(np.mgrid[self.where], float), 0, -1)
        self.away, self.at = cKDTree(points).query(cells)
        off = (cells - points[self.at]) / np.maximum(self.away, 1e-6)[..., None]
        self.lit = step(0.5 - off @ (scene.lamp[:2] / np.hypot(*scene.lamp[:2])))


def crack(rng: Rng, scene: Scene, center: Array) -> None:
    """A thin dark line that bends, kinks and branches, of varying width; one of its edges stands up and is lit."""
    s = scene.scale
    points = walk(rng, rng.uniform(32, LONGEST) * s, rng.uniform(0, 2 * np.pi), 0.2, 0.45)
    points += center - points[len(points) // 2]
    t = np.linspace(0, 1, len(points))
    swell = np.exp(np.interp(t, np.linspace(0, 1, len(points) // 9 + 2), rng.normal(0, 0.4, len(points) // 9 + 2)))
    ends = np.clip(np.minimum(t, 1 - t) * 5 + 0.15, 0, 1)
    width = rng.uniform(0.42, 0.85) * s * ends * np.clip(swell, 0.4, 2)
    groove(scene, points, width)
    for _ in range(rng.integers(0, 4)):
        k = int(rng.integers(len(points) // 5, 4 * len(points) // 5))
        ahead = np.arctan2(*(points[min(k + 8, len(points) - 1)] - points[k]))
        branch = walk(rng, rng.uniform(4, 14) * s, ahead + rng.choice([-1, 1]) * rng.uniform(0.4, 1.0), 0.2, 0.5)
        groove(scene, branch + points[k], width[k] * np.linspace(0.75, 0.15, len(branch)))


def groove(scene: Scene, points: Array, width: Array) -> None:
    """Cut a line of half `width` cells, in which light is lost, and whose one edge stands up a little."""
    s = scene.scale
    line = Line(scene, points, 6 * float(width.max()) + 2 * s)
    w = np.maximum(width[line.at], 0.45)
    part = np.minimum(width[line.at] / 0.45, 1) * scene.solid[line.where]  # of a cell, where it is thinner than one
    deep = np.exp(-((line.away / w) ** 2)) * part
    lip = np.exp(-(((line.away - 1.5 * w - 0.4 * s) / (0.35 * s + 0.3 * w)) ** 2)) * part * (0.1 + 0.9 * line.lit)
    scene.height[line.where] += 2.2 * w / (0.5 + w) * (0.36 * lip - deep)
    scene.albedo[line.where] += 0.55 * lip[..., None] * (scene.fresh[line.where] - scene.albedo[line.where])
    scene.albedo[line.where] *= 1 - 0.88 * deep[..., None]
    scene.gloss[line.where] *= 1 - deep
    scene.sparkle[line.where] += 0.2 * lip


def scratch(rng: Rng, scene: Scene, center: Array) -> None:
    """One to three nearly straight grooves with bright burrs that fade at their ends."""
    s = scene.scale
    turn, length, bend = rng.uniform(0, 2 * np.pi), rng.uniform(32, LONGEST + 2) * s, rng.normal(0, 0.10)
    along, across = np.array([np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), -np.sin(turn)])
    for k in range(int(rng.choice([1, 1, 1, 2, 3]))):
        first = k == 0
        t = np.linspace(-0.5, 0.5, int(2 * length * (1 if first else rng.uniform(0.35, 0.8))))
        angle = turn + (0 if first else rng.normal(0, 0.03)) + 2 * bend * t
        points = np.cumsum(np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0) / 2
        aside = 0 if first else k * rng.uniform(3.5, 6) * s * across + rng.normal(0, 0.1) * length * along
        points += center - points.mean(axis=0) + aside
        fade = np.clip((0.5 - np.abs(t)) * rng.uniform(2.5, 6), 0, 1)
        chatter = 1 + 0.25 * np.interp(t, np.linspace(-0.5, 0.5, 24), rng.normal(size=24))
        plough(scene, points, rng.uniform(0.60, 1.05) * s, fade * np.clip(chatter, 0.2, 1.8) * (1 if first else 0.7))


def plough(scene: Scene, points: Array, width: float, force: Array) -> None:
    """Draw a tip of half `width` cells along a line with a `force` from 0 to 1: a groove, and what it threw up."""
    line = Line(scene, points, 5 * width + 2)
    wide = max(width, 0.7)
    f = force[line.at] * width / wide * scene.solid[line.where]
    deep = f * np.exp(-((line.away / wide) ** 2))
    burr = f * np.exp(-(((line.away - 1.8 * wide) / (0.75 * wide)) ** 2)) * (0.35 + 0.65 * line.lit)
    scene.height[line.where] += wide * (0.65 * burr - 0.9 * deep)
    torn = np.clip(burr, 0, 1)[..., None]
    scene.albedo[line.where] += 0.9 * torn * (scene.fresh[line.where] - scene.albedo[line.where])
    scene.albedo[line.where] *= 1 - 0.4 * np.clip(deep, 0, 1)[..., None]
    scene.gloss[line.where] *= 1 - 0.7 * np.clip(deep, 0, 1)
    scene.sparkle[line.where] += 0.25 * torn[..., 0]


def polygon(rng: Rng, shape: tuple[int, int], center: Array, radius: float) -> Array:
    """A broken shape with straight sides around a point: 1 there, 0 on its edge, below 0 outside; [H, W]."""
    y, x = grid(shape)
    dy, dx = y - center[0], x - center[1]
    corners = int(rng.integers(7, 12))
    turns = np.sort((np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners)
    far = radius * np.clip(rng.normal(1, 0.13, corners), 0.65, 1.3)
    angle = (np.arctan2(dy, dx) - turns[0]) % (2 * np.pi) + turns[0]
    side = np.clip(np.searchsorted(turns, angle, side="right") - 1, 0, corners - 1)
    p = np.stack([far * np.sin(turns), far * np.cos(turns)], axis=1)
    q = np.roll(p, -1, axis=0)
    normal = np.stack([q[:, 1] - p[:, 1], p[:, 0] - q[:, 0]], axis=1)
    inside = 1 - (normal[side, 0] * dy + normal[side, 1] * dx) / (normal * p).sum(axis=1)[side]
    return np.asarray(inside)


def chip(rng: Rng, scene: Scene, center: Array) -> None:
    """Material broken out: a shallow crater with a steep and a flat side, or a piece of the product's edge."""
    s, shape = scene.scale, (scene.height.shape[0], scene.height.shape[1])
    radius = rng.uniform(6, 15) * s
    inside = polygon(rng, shape, center, radius)
    inside = inside + 0.05 * noise(rng, shape, 1.6 * s) + 0.03 * noise(rng, shape, 0.7 * s)
    broken = step(inside * radius / s + 0.4) * scene.solid
    y, x = grid(shape)
    turn = rng.uniform(0, 2 * np.pi)
    dy, dx = (y - center[0]) / radius, (x - center[1]) / radius
    # A blow at a point of the outline leaves shells around it, and goes in less deep on the far side.
    hit = np.hypot(dy - 0.9 * np.sin(turn), dx - 0.9 * np.cos(turn))
    shells = np.cos(hit**1.3 * rng.uniform(6, 10) + 0.7 * noise(rng, shape, 5 * s)) * np.exp(-hit)
    depth = rng.uniform(0.24, 0.36) * radius
    bowl = step(inside * radius / (4 * s) + 0.1) * (0.8 - 0.6 * (np.sin(turn) * dy + np.cos(turn) * dx))
    crumbs = 0.22 * noise(rng, shape, 0.8 * s) + 0.35 * noise(rng, shape, 2.2 * s)
    fracture = -depth * bowl + 0.3 * depth * shells + 0.10 * s * crumbs

    below = scene.bare * (1 + 0.06 * noise(rng, shape, 0.8 * s) + 0.08 * noise(rng, shape, 3 * s))[..., None]
    through = step((-fracture - scene.coat) / (0.4 * s) + 0.5)[..., None] if scene.coat else 1.0
    albedo = below * through + (1 - through) * (0.6 * scene.albedo + 0.4 * scene.fresh)
    if blur(1 - scene.solid, 1.5 * s)[int(center[0]), int(center[1])] > 0.1:  # at an edge of the product
        gone = step((inside - 0.5) * radius / s)
        left = np.clip(scene.height, 0, None) * (1 - 0.85 * step(inside * 1.7)) + 0.5 * s * crumbs
        fracture = left * (1 - gone) - scene.height
        albedo = below * (1 - gone[..., None]) + scene.below * gone[..., None]
    scene.height += broken * fracture
    scene.albedo += broken[..., None] * (albedo - scene.albedo)
    scene.gloss *= 1 - 0.85 * broken
    scene.sparkle += 0.06 * broken


def stain(rng: Rng, scene: Scene, center: Array) -> None:
    """A dried liquid: a faint film with a darker rim, which spread along the grain or the threads."""
    s, shape = scene.scale, (scene.height.shape[0], scene.height.shape[1])
    reach = rng.uniform(0.4, 0.85) * LONGEST / 2 * s  # along x
    y, x = grid(shape)
    dy, dx = (y - center[0]) / reach * scene.grain, (x - center[1]) / reach
    angle, away = np.arctan2(dy, dx), np.hypot(dy, dx)
    lobes = [rng.normal(0, 0.26 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5)]
    ragged = 0.08 * noise(rng, shape, (2.5 * s, 2.5 * s * scene.grain)) + 0.03 * noise(rng, shape, 1.2 * s)
    if scene.grain > 1:
        ragged = ragged + 0.13 * noise(rng, shape, (0.5 * s, 12 * s))
    if scene.threads:
        thin, long = scene.threads / 2.6, 2 * scene.threads
        ragged = ragged + 0.12 * np.maximum(noise(rng, shape, (thin, long)), noise(rng, shape, (long, thin)))
    inside = 1 + np.sum(lobes, axis=0) - away + ragged * np.exp(-((away / 1.4) ** 8))
    deep = inside * reach / scene.grain / s  # pixels from the outline, about
    film = step(deep / 2.5 + 0.5)
    rim = np.exp(-(((deep - 1.2) / 1.2) ** 2)) + 0.35 * np.exp(-(((deep - 4.5) / 2.2) ** 2))
    rim = rim * np.clip(0.8 + 0.35 * noise(rng, shape, 6 * s), 0.15, 1.4)
    cloud = np.clip(1 + 0.3 * noise(rng, shape, (4 * s, 4 * s * scene.grain)) - 0.3 * np.clip(inside, 0, 1), 0.3, 2)
    takes = rng.uniform(0.35, 0.65) * (0.6 * film * cloud + 0.6 * rim)
    takes = takes * scene.solid
    hides = np.clip(takes[..., None] * np.array(scene.opaque), 0, 0.95)
    scene.albedo += hides * (np.array(scene.residue) - scene.albedo)
    scene.gloss *= np.clip(1 - 0.9 * takes, 0.1, 1)


def spot(rng: Rng, scene: Scene, center: Array) -> None:
    """A pore, or a group of them: dark pits with a raised rim, of which the far wall catches the light."""
    s = scene.scale
    main = rng.uniform(2.4, 6.5)
    pit(rng, scene, center, main * s)
    for _ in range(int(rng.choice([0, 0, 1, 2, 3]))):
        turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 3.0) * main * s
        pit(rng, scene, center + away * np.array([np.sin(turn), np.cos(turn)]), rng.uniform(0.8, 0.4 * main + 0.8) * s)


def pit(rng: Rng, scene: Scene, center: Array, radius: float) -> None:
    """One pore of a radius in cells."""
    y, x = grid((scene.height.shape[0], scene.height.shape[1]))
    dy, dx = y - center[0], x - center[1]
    squash, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    u, v = (np.cos(turn) * dx + np.sin(turn) * dy) * squash, -np.sin(turn) * dx + np.cos(turn) * dy
    angle = np.arctan2(v, u)
    bumps = [rng.normal(0, 0.14 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5, 7, 9)]
    r = np.hypot(u, v) / (radius * (1 + np.sum(bumps, axis=0)))
    hole = np.where(r < 1, (1 - np.minimum(r, 1) ** 2) ** 0.8, 0)
    rim = np.exp(-(((r - 1.12) / 0.16) ** 2))
    toward = (dy * scene.lamp[0] + dx * scene.lamp[1]) / np.maximum(np.hypot(dy, dx), 1)
    worn = rim * scene.solid * step(0.3 - 1.2 * toward + 0.25 * noise(rng, (y.shape[0], y.shape[1]), 0.5 * radius))
    rough = 0.05 * radius * noise(rng, (scene.height.shape[0], scene.height.shape[1]), 0.25 * radius)
    scene.height += (rough - rng.uniform(0.45, 0.75) * radius) * hole + 0.10 * radius * rim
    inner = step((1.0 - r) * radius / scene.scale + 0.5)
    soot = np.clip(inner * (0.25 + 0.35 * hole) + 0.05 * np.exp(-((r / 1.6) ** 4)), 0, 1)
    scene.albedo += 0.45 * worn[..., None] * (scene.fresh - scene.albedo)
    scene.albedo *= (1 - soot)[..., None]
    scene.gloss *= 1 - 0.7 * inner
    scene.sparkle += 0.40 * np.maximum(inner * scene.solid, worn)
