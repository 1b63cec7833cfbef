"""Draws circuit boards: a golden image, and photographs of a flawless and of a defective one."""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

KINDS: Final = ("bilevel", "gray", "color")
SIDE: Final = 640
Image = NDArray[np.uint8]
_TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1))


def board(kind: str, rng: np.random.Generator) -> tuple[Image, Image, Image, list[tuple[int, int, int, int]]]:
    """The golden image, a flawless and a defective photograph, and the boxes (left, top, right, bottom) of defects."""
    drawn, width = _design(rng)
    spoiled, boxes = _spoil(rng, drawn, width)
    golden, _ = _photograph(rng, drawn, kind, golden=True)
    defective, (right, down) = _photograph(rng, spoiled, kind, golden=False)
    flawless, _ = _photograph(rng, drawn, kind, golden=False)
    moved = [(round(a - right), round(b - down), round(c - right), round(d - down)) for a, b, c, d in boxes]
    return golden, flawless, defective, moved


def _design(rng: np.random.Generator) -> tuple[Image, float]:
    """Traces with pads, and some planes; and the width of the traces in pixels. Drawn at twice the size."""
    side = 2 * SIDE
    image = np.zeros((side, side), np.uint8)
    pitch, width = 2 * int(rng.integers(18, 34)), 2 * int(rng.integers(6, 11))
    taken = np.zeros((side // pitch + 1,) * 2, bool)
    for _ in range(60):
        x, y = (int(each) for each in rng.integers(0, len(taken), 2))
        points = [(x, y)]
        for _ in range(int(rng.integers(2, 7))):
            right, down = _TURNS[rng.integers(len(_TURNS))]
            for _ in range(int(rng.integers(1, 6))):
                to = x + right, y + down
                if not (min(to) >= 0 and max(to) < len(taken)) or taken[to[1], to[0]]:
                    break
                x, y = to
                taken[y, x] = True
            points.append((x, y))
        path = (np.array(points) * pitch).astype(np.int32)
        cv2.polylines(image, [path], False, 255, width, cv2.LINE_AA)
        for end in (path[0], path[-1]):
            at = int(end[0]), int(end[1])
            cv2.circle(image, at, int(width * 1.1), 255, -1, cv2.LINE_AA)
            if rng.random() < 0.6:
                cv2.circle(image, at, int(width * 0.45), 0, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(each) for each in rng.integers(0, side - 200, 2))
        across, high = (int(each) for each in rng.integers(60, 260, 2))
        cv2.rectangle(image, (x, y), (x + across, y + high), 255, -1)
    return np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8), width / 2


def _spoil(rng: np.random.Generator, image: Image, width: float) -> tuple[Image, list[tuple[int, int, int, int]]]:
    """Up to six defects: opens, shorts, bites, spurs, pinholes and stray copper."""
    image, boxes = image.copy(), []
    edge = cv2.Canny(image, 50, 150) > 0
    inside, outside = (
        np.asarray(cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3)) for part in (image > 127, image <= 127)
    )
    places: dict[str, NDArray[Any]] = {
        "open": inside >= width / 2 - 1, "pinhole": inside >= width / 2 - 1, "bite": edge, "spur": edge,
        "short": (outside > 3) & (outside < 14), "copper": outside > 8,
    }  # fmt: skip
    for _ in range(int(rng.integers(0, 7))):
        kind = str(rng.choice(list(places)))
        where = np.argwhere(places[kind])
        where = where[((where > 20) & (where < SIDE - 20)).all(axis=1)]
        if not len(where):
            continue
        y, x = (int(each) for each in where[rng.integers(len(where))])
        radius, turn, before = float(rng.uniform(3, 5.5)), float(rng.uniform(0, 180)), image.copy()
        if kind in ("bite", "pinhole"):
            cv2.circle(image, (x, y), max(2, round(radius * (1 if kind == "bite" else 0.7))), 0, -1, cv2.LINE_AA)
        elif kind == "open":
            cv2.ellipse(image, (x, y), (int(width / 2 + 3), int(radius)), turn // 90 * 90, 0, 360, 0, -1, cv2.LINE_AA)
        elif kind == "short":
            dx, dy = int(16 * np.cos(np.radians(turn))), int(16 * np.sin(np.radians(turn)))
            cv2.line(image, (x - dx, y - dy), (x + dx, y + dy), 255, 4, cv2.LINE_AA)
        else:
            axes = (int(radius * 1.6), int(max(2, radius * (0.7 if kind == "spur" else 1))))
            cv2.ellipse(image, (x, y), axes, turn, 0, 360, 255, -1, cv2.LINE_AA)
        rows, columns = np.nonzero(cv2.absdiff(image, before) > 100)
        if len(rows) < 6:  # nothing to see, such as copper on copper
            image = before
            continue
        boxes.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return image, boxes


def _photograph(
    rng: np.random.Generator, image: Image, kind: str, *, golden: bool
) -> tuple[Image, tuple[float, float]]:
    """A board as a camera sees it, and how far it is to the left and up of where it was drawn, in pixels."""
    values: NDArray[Any] = image.astype(np.float32) / 255
    right = down = 0.0
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    if not golden:
        ragged = [cv2.GaussianBlur(rng.normal(size=image.shape).astype(np.float32), (0, 0), 2.5) for _ in range(2)]
        reach = 1.5 if kind == "bilevel" else 4.0
        right, down = (float(each) for each in rng.uniform(-reach, reach, 2))
        x, y = (
            (at + 0.6 * each / each.std() + by).astype(np.float32)
            for at, each, by in zip((columns, rows), ragged, (right, down), strict=True)
        )
        values = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if kind == "bilevel":
        noisy = cv2.GaussianBlur(values, (0, 0), 0.8) + rng.normal(0, 0.08, image.shape)
        return np.where(noisy > rng.uniform(0.4, 0.6), 255, 0).astype(np.uint8), (right, down)
    tones = ((30, 90, 40), (190, 170, 90)) if kind == "color" else ((60,), (180,))
    below, copper = (np.array(each) for each in tones)
    grain = cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), 3)[..., None] * 8
    light = np.ones((SIDE, SIDE, 1))
    if not golden:
        change, across, along = rng.uniform(-0.12, 0.12, 3)
        light += (change + across * (columns / SIDE - 0.5) + along * (rows / SIDE - 0.5))[..., None]
    values = cv2.GaussianBlur(values, (0, 0), 0.7 if golden else float(rng.uniform(0.6, 1.1)))
    seen = (below + (copper - below) * values[..., None] + grain) * light + rng.normal(0, 3.5, (SIDE, SIDE, len(below)))
    pixels = np.clip(seen, 0, 255).astype(np.uint8)
    return pixels if len(below) == 3 else pixels[..., 0], (right, down)
