"""A bare circuit board: its layout, which is the same for all pieces, and how one lies under the camera."""

from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.graph import MCP_Geometric

from .scene import Array, Rng, Scene, blur, falloff, flat, grid, lamp, noise, step

CELL = 8  # pixels of the grid on which traces run
TALL, WIDE = 108, 140  # cells of the board
FINE = 2  # times finer than the image: how layers are drawn before they are scaled down
Point = tuple[float, float]  # y, x in pixels


@dataclass
class Layout:
    """What is where, in pixels of a board that lies straight."""

    pads: list[tuple[Point, Point]] = field(default_factory=list)  # middle and size
    rings: list[tuple[Point, float, float]] = field(default_factory=list)  # middle, radius of copper and of the hole
    traces: list[tuple[list[Point], float]] = field(default_factory=list)  # points and width
    boxes: list[list[Point]] = field(default_factory=list)  # outlines that are printed
    texts: list[tuple[Point, str, float]] = field(default_factory=list)  # left end of the foot, text, height
    dots: list[Point] = field(default_factory=list)
    pins: list[tuple[int, int, str]] = field(default_factory=list)  # cells where traces can end, of which part


def snap(value: float) -> int:
    """The cell of a pixel."""
    return int(value // CELL)


def pad(layout: Layout, at: Point, size: Point, part: str) -> None:
    """A pad of a part, which a trace can lead to."""
    layout.pads.append((at, size))
    layout.pins.append((snap(at[0]), snap(at[1]), part))


def package(layout: Layout, at: Point, pins: int, sides: int, name: str) -> None:
    """An integrated circuit with so many pins on each of 2 or 4 sides, 16 pixels apart."""
    y, x = at
    pitch, half = 2 * CELL, pins * CELL + 14
    deep = half if sides == 4 else 5 * CELL + 4
    for k in range(pins):
        along = (k - (pins - 1) / 2) * pitch
        for sign in (-1, 1):
            pad(layout, (y + sign * deep, x + along), (26, 9), name)
            if sides == 4:
                pad(layout, (y + along, x + sign * half), (9, 26), name)
    inner_y, inner_x = deep - 20, (half - 20 if sides == 4 else half - 8)
    corners = [(y + sy * inner_y, x + sx * inner_x) for sy, sx in ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))]
    layout.boxes.append(corners)
    layout.dots.append((y + inner_y - 9, x - inner_x + 9))
    layout.texts.append(((y + 8, x - 14), name, 20))


def chip_part(layout: Layout, at: Point, upright: bool, name: str) -> None:
    """A resistor or capacitor with two pads."""
    y, x = at
    for sign in (-1, 1):
        pad(layout, (y + sign * 20 * upright, x + sign * 20 * (not upright)), (20, 24) if upright else (24, 20), name)
    dy, dx = (36, 17) if upright else (17, 36)
    layout.boxes.append([(y - dy, x - dx), (y - dy, x + dx), (y + dy, x + dx), (y + dy, x - dx), (y - dy, x - dx)])
    layout.texts.append(((y + 6, x + dx + 5) if upright else (y - dy - 5, x - 14), name, 15))


def header(layout: Layout, at: Point, columns: int, rows: int, name: str) -> None:
    """Rows of holes for pins, 40 pixels apart."""
    y, x = at
    for row in range(rows):
        for column in range(columns):
            center = (y + 40.0 * row, x + 40.0 * column)
            layout.rings.append((center, 14, 7.5))
            layout.pins.append((snap(center[0]), snap(center[1]), name))
    top, left, bottom, right = y - 22, x - 22, y + 40 * (rows - 1) + 22, x + 40 * (columns - 1) + 22
    layout.boxes.append([(top, left), (top, right), (bottom, right), (bottom, left), (top, left)])
    layout.texts.append(((top - 6, left), name, 18))


@cache
def layout() -> Layout:
    """The board of all images."""
    rng = np.random.default_rng(4)
    made = Layout()
    package(made, (404, 492), 12, 4, "U1")
    package(made, (252, 892), 8, 2, "U2")
    package(made, (612, 860), 4, 2, "U3")
    package(made, (700, 330), 7, 2, "U4")
    header(made, (92, 300), 12, 2, "J1")
    header(made, (412, 1028), 2, 7, "J2")
    header(made, (716, 560), 6, 1, "J3")
    spots = [
        (244, 172), (244, 260), (324, 180), (412, 180), (492, 180), (572, 212), (660, 140), (740, 140), (580, 412),
        (580, 500), (580, 590), (244, 660), (244, 740), (372, 748), (444, 748), (524, 748), (404, 876), (468, 876),
        (700, 956), (772, 876), (772, 964), (124, 876), (124, 964), (660, 708), (560, 660),
    ]  # fmt: skip
    for k, (y, x) in enumerate(spots):
        chip_part(made, (y + 4.0, x + 4.0), bool(rng.random() < 0.4), ("R", "C", "C", "R")[k % 4] + str(k // 2 + 1))
    for y, x in ((64, 64), (64, 1056), (800, 64), (800, 1056)):
        made.rings.append(((float(y), float(x)), 40, 27))
    made.texts += [((216, 380), "CTRL-4 REV B", 22), ((150, 120), "DG 2419", 16), ((650, 200), "94V-0", 15)]
    route(made, rng)
    return made


def route(made: Layout, rng: Rng) -> None:
    """Connect pins by traces at multiples of 45 degrees that keep a cell apart, the nearest first; others get a via."""
    free = np.ones((TALL, WIDE))
    for (y, x), (tall, wide) in made.pads:
        free[snap(y - tall / 2) : snap(y + tall / 2) + 1, snap(x - wide / 2) : snap(x + wide / 2) + 1] = -1
    for (y, x), radius, _ in made.rings:
        free[_around(y, radius + 4), _around(x, radius + 4)] = -1
    cells = [(y, x) for y, x, _ in made.pins]
    pairs = sorted(
        (np.hypot(a[0] - b[0], a[1] - b[1]) + rng.uniform(0, 25), i, k)
        for i, a in enumerate(made.pins)
        for k, b in enumerate(made.pins[:i])
        if a[2] != b[2]
    )
    used: set[int] = set()
    for distance, i, k in pairs:
        if i not in used and k not in used and distance < 90:
            path = connect(free, cells[i], cells[k])
            if path:
                used |= {i, k}
                made.traces.append((path, 5.0))
    for i in sorted(set(range(len(cells))) - used):
        for end in ends(free, cells[i], rng):
            path = connect(free, cells[i], end)
            if path:
                made.traces.append((path, 5.0))
                made.rings.append((path[-1], 8.5, 4))
                break


def _around(value: float, reach: float) -> slice:
    return slice(max(snap(value - reach), 0), snap(value + reach) + 1)


def ends(free: Array, pin: tuple[int, int], rng: Rng) -> list[tuple[int, int]]:
    """A few cells near a pin around which there is room for a via."""
    near = [(pin[0] + int(dy), pin[1] + int(dx)) for dy, dx in rng.integers(-11, 12, (40, 2))]
    inner = [(y, x) for y, x in near if 3 <= y < TALL - 3 and 3 <= x < WIDE - 3]
    return [(y, x) for y, x in inner if (free[y - 1 : y + 2, x - 1 : x + 2] > 0).all()][:4]


def connect(free: Array, a: tuple[int, int], b: tuple[int, int]) -> list[Point]:
    """The corners of the shortest path between two cells, which `free` then keeps others from, if there is one."""
    costs = free.copy()
    for y, x in (a, b):
        costs[y, x] = 1
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):  # along the pad to its end
            if free[y + 3 * dy, x + 3 * dx] > 0:
                costs[y + dy, x + dx] = costs[y + 2 * dy, x + 2 * dx] = 1
    search = MCP_Geometric(costs)
    search.find_costs([a], [b])
    try:
        path = search.traceback(b)
    except ValueError:
        return []
    for y, x in path:
        free[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = -1
    return [(CELL * (y + 0.5), CELL * (x + 0.5)) for y, x in corners(path)]


def corners(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A path without the points on its straight parts."""
    kept = [path[0]]
    for before, here, after in zip(path, path[1:], path[2:], strict=False):
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1]):
            kept.append(here)
    return [*kept, path[-1]]


class Layers:
    """Draws parts of a layout as they lie under the camera, each layer [H, W] from 0 to 1."""

    def __init__(self, size: tuple[int, int], corner: Point, turn: float) -> None:
        self.size, self.turn = size, turn
        self.matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self.corner = np.array(corner)

    def blank(self) -> NDArray[np.uint8]:
        return np.zeros((self.size[0] * FINE, self.size[1] * FINE), np.uint8)

    def seen(self, points: list[Point]) -> NDArray[np.int32]:
        """Where points y, x of the board are in a layer, as OpenCV takes them: x, y in sixteenths."""
        moved = (np.array(points) - self.corner) @ self.matrix * FINE
        return np.rint(moved[:, ::-1] * 16).astype(np.int32)

    def done(self, canvas: NDArray[np.uint8]) -> Array:
        return np.asarray(cv2.resize(canvas, self.size[::-1], interpolation=cv2.INTER_AREA) / 255.0)

    def pads(self, pads: list[tuple[Point, Point]], grow: float) -> NDArray[np.uint8]:
        canvas = self.blank()
        for (y, x), (tall, wide) in pads:
            h, w = tall / 2 + grow, wide / 2 + grow
            box = self.seen([(y - h, x - w), (y - h, x + w), (y + h, x + w), (y + h, x - w)])
            cv2.fillPoly(canvas, [box], 255, cv2.LINE_AA, 4)
        return canvas

    def circles(self, canvas: NDArray[np.uint8], circles: list[tuple[Point, float]]) -> NDArray[np.uint8]:
        for at, radius in circles:
            (x, y) = self.seen([at])[0].tolist()
            cv2.circle(canvas, (x, y), int(radius * FINE * 16), 255, -1, cv2.LINE_AA, 4)
        return canvas

    def lines(self, canvas: NDArray[np.uint8], lines: list[tuple[list[Point], float]]) -> NDArray[np.uint8]:
        for points, width in lines:
            cv2.polylines(canvas, [self.seen(points)], False, 255, max(round(width * FINE), 1), cv2.LINE_AA, 4)
        return canvas

    def texts(self, canvas: NDArray[np.uint8], texts: list[tuple[Point, str, float]]) -> NDArray[np.uint8]:
        for at, text, tall in texts:
            (x, y) = (self.seen([at])[0] // 16).tolist()
            cv2.putText(
                canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, tall * FINE / 22, 255, round(1.6 * FINE), cv2.LINE_AA
            )
        return canvas


def board(rng: Rng, size: tuple[int, int]) -> Scene:
    """A board below a camera, colour: copper below green mask, gilded pads, holes, and white print."""
    made = layout()
    turn = rng.normal(0, 0.006)
    corner = ((TALL * CELL - size[0]) / 2 + rng.normal(0, 6), (WIDE * CELL - size[1]) / 2 + rng.normal(0, 6))
    draw = Layers(size, corner, turn)
    outer = [(at, radius) for at, radius, _ in made.rings]
    wires = draw.lines(draw.circles(draw.pads(made.pads, 0), outer), made.traces)
    kept = cv2.dilate(wires, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (8 * FINE + 1, 8 * FINE + 1)))
    pour = cv2.morphologyEx(
        255 - kept, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9 * FINE, 9 * FINE))
    )
    copper = draw.done(np.maximum(wires, pour))
    # The mask is printed a little beside the copper, and the white print beside both, on each piece another way.
    draw.corner = draw.corner + rng.normal(0, 0.6, 2)
    open_rings = [(at, radius + 2.5) for at, radius in outer if radius > 9]
    bare = draw.done(draw.circles(draw.pads(made.pads, 2), open_rings))
    holes = draw.done(draw.circles(draw.blank(), [(at, radius) for at, _, radius in made.rings]))
    draw.corner = draw.corner + rng.normal(0, 0.9, 2)
    printed = draw.lines(draw.blank(), [(box, 1.8) for box in made.boxes])
    printed = draw.texts(draw.circles(printed, [(at, 3.5) for at in made.dots]), made.texts)
    rough = blur(draw.done(printed) * (1 - bare), 0.6) + 0.10 * noise(rng, size, 1.0)
    ink = step((rough - 0.25) * 2.2) * (0.9 + 0.08 * noise(rng, size, 2))
    return finish(rng, size, copper, bare, holes, np.clip(ink, 0, 1))


def finish(rng: Rng, size: tuple[int, int], copper: Array, bare: Array, holes: Array, ink: Array) -> Scene:
    """Heights and colours of a board's layers, each [H, W] from 0 to 1; `bare` is where the mask is open."""
    y, x = grid(size)
    weave = np.sin(2 * np.pi * x / 7.3) * np.sin(2 * np.pi * y / 6.1)
    uneven = 1 + 0.03 * noise(rng, size, 30) + 0.02 * noise(rng, size, 1.2)
    over_resin = np.array([0.006, 0.088, 0.034]) * (uneven * (1 + 0.10 * weave))[..., None]
    over_copper = np.array([0.012, 0.175, 0.062]) * (uneven * (1 + 0.02 * noise(rng, size, 3)))[..., None]
    soft = blur(copper, 0.7)[..., None]
    masked = over_resin * (1 - soft) + over_copper * soft
    gold = np.array([0.62, 0.43, 0.15]) * (1 + 0.03 * noise(rng, size, 0.8) + 0.04 * noise(rng, size, 4))[..., None]
    resin = np.array([0.24, 0.25, 0.12]) * (1 + 0.12 * weave[..., None])
    metal = copper * bare
    open_here = (bare * (1 - copper))[..., None]
    albedo = masked * (1 - bare[..., None]) + gold * metal[..., None] + resin * 0.6 * open_here
    albedo = albedo * (1 - 0.92 * ink[..., None]) + 0.66 * 0.92 * ink[..., None]
    albedo = albedo * (1 - holes[..., None]) + 0.006 * holes[..., None]
    covered = 1 - bare
    height = 1.5 * blur(copper, 0.5 * 1.0) * bare + covered * (1.4 * blur(copper, 1.5) + 0.7) + 0.4 * blur(ink, 0.6)
    height = (
        height + 0.035 * noise(rng, size, 2.2) * covered + 0.04 * noise(rng, size, 1.2) * metal - 4 * blur(holes, 0.6)
    )
    source = lamp(rng, -2.3, 0.95)
    center = rng.uniform(0.0, 1.0, 2)
    drift = np.stack([y / size[0] - center[0], x / size[1] - center[1]]) * 0.5
    gloss = (0.05 * covered * (1 - 0.7 * ink) + metal * (0.30 + 0.05 * noise(rng, size, 1.0))) * (1 - holes)
    pink = np.array([0.50, 0.23, 0.13])
    below = pink * copper[..., None] + np.array([0.30, 0.31, 0.17]) * (1 - copper[..., None])
    return Scene(
        scale=1,
        height=height,
        albedo=albedo,
        gloss=np.clip(gloss, 0, None),
        lamp=source,
        shade=falloff(rng, size, source, 0.10),
        mirror=drift,
        lobe=(0.28, 0.28),
        bare=below,
        fresh=below * 0.6 + 0.32,
        coat=0.9,
        below=flat(size, 0, 0, 0),
        solid=1 - holes,
        residue=(0.34, 0.32, 0.24),
        opaque=(0.6, 0.54, 0.54),
        places=np.argwhere((holes < 0.01) & (ink < 0.5))[::50].astype(float),
    )
