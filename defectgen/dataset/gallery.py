"""Writes `review.html`: all samples of a dataset, to accept and to reject them, in one file with embedded pictures."""

import hashlib
import json
import os
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files, markup
from defectgen.dataset import manifest
from defectgen.dataset.manifest import Row
from defectgen.errors import BadInputError
from defectgen.imaging.images import encode_jpeg, read_image, read_mask
from defectgen.imaging.windows import Box
from defectgen.text import printable

NAME: Final = "review.html"
_MARK = '<meta name="generator" content="defectgen review">'

_SIDE, _REAL_SIDE = 256, 96  # pixels, the longer sides of pictures of samples and of real defects
_ROOM = 2.5  # the side of what a picture shows, in those of the defect
_LEAST = {_SIDE: 160, _REAL_SIDE: 80}  # pixels of an image that a picture of this side shows at least
_NEARLY_ALL = 0.7  # of an image: then the picture shows all of it
_QUALITY = 80
_BYTES = 60_000_000  # of embedded pictures
_TOLERANCE = 0.6  # pixels of a picture, by which outlines are simplified

_ORDERS = {
    "number": "number", "distance": "least like real ones first", "small": "smallest defects first",
    "large": "largest defects first",
}  # fmt: skip
_VERDICTS = ("undecided", "accepted", "rejected")

_STYLE = """
body { max-width: none; }
#controls { position: sticky; top: 0; z-index: 1; background: var(--ground); border: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .4em 1.2em; align-items: center; padding: .5em .8em; margin: 0 0 1em; }
#controls select, #controls input { font: inherit; max-width: 14em; }
kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 .35em; }
#samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16.5em), 1fr)); gap: 1em; }
article { border: 2px solid var(--line); border-radius: 4px; padding: .5em; scroll-margin: 9em 0 1em;
  content-visibility: auto; contain-intrinsic-size: auto 26em; }
article.accepted { border-color: var(--good); } article.rejected { border-color: var(--bad); }
article.rejected .picture { opacity: .45; }
.picture { position: relative; display: block; width: fit-content; max-width: 100%; margin: 0 auto; }
.picture img { margin: 0; } .picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture path { fill: none; stroke: var(--mark); stroke-width: 2; vector-effect: non-scaling-stroke; }
.picture svg { visibility: hidden; }
article:hover .picture svg, article:focus-within .picture svg, .outlines .picture svg { visibility: visible; }
.facts { display: flex; gap: .7em; margin: .5em 0; } .facts p { margin: 0; flex: 1; }
.real { width: 96px; height: 96px; flex: none; background: center/contain no-repeat; }
.buttons { display: flex; gap: .5em; } .buttons button { flex: 1; font: inherit; padding: .35em; cursor: pointer; }
[aria-pressed=true] { font-weight: 700; color: var(--ground); background: var(--ink); }
[hidden] { display: none !important; } #export[aria-disabled] { opacity: .5; }
code { background: color-mix(in srgb, var(--line) 25%, transparent); padding: .1em .3em; }
@media (max-width: 30em) { #controls { position: static; } article { scroll-margin: 1em 0; } }
"""

_SCRIPT = """
"use strict";
const by = id => document.getElementById(id), list = by("samples"), cards = [...list.children];
const verdicts = new Map();
const verdict = card => verdicts.get(card.dataset.name) || "undecided";
const shown = () => [...list.children].filter(card => !card.hidden);
function keep() {
  try { localStorage.setItem(KEY, JSON.stringify([...verdicts])); } catch { by("unkept").hidden = false; }
}
function paint(card) {
  card.classList.remove("accepted", "rejected");
  if (verdict(card) !== "undecided") card.classList.add(verdict(card));
  for (const button of card.querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(button.value === verdict(card)));
}
function count() {
  const names = cards.filter(card => verdict(card) === "rejected").map(card => card.dataset.name);
  const accepted = cards.filter(card => verdict(card) === "accepted").length, link = by("export");
  by("count").textContent = `${shown().length} of ${cards.length} shown, ${accepted} accepted, ` +
    `${names.length} rejected`;
  by("next").hidden = !names.length;
  if (names.length) {
    link.href = "data:text/plain;charset=utf-8," + encodeURIComponent(names.join("\\n") + "\\n");
    link.removeAttribute("aria-disabled");
  } else {
    link.removeAttribute("href");
    link.setAttribute("aria-disabled", "true");
  }
}
function filter() {
  const part = by("name").value.toLowerCase(), category = by("category").value, wanted = by("verdict").value;
  for (const card of cards) card.hidden = !(
    card.dataset.name.toLowerCase().includes(part) && (!category || card.dataset.category === category) &&
    (!wanted || verdict(card) === wanted));
  if (!list.querySelector("article[tabindex='0']:not([hidden])")) turnTo(shown()[0]);  // the only one in the tab order
  count();
}
function sort() {
  const number = (card, key) => card.dataset[key] === undefined ? -1 : Number(card.dataset[key]);
  const orders = {
    number: () => 0,
    distance: (a, b) => number(b, "distance") - number(a, "distance"),
    small: (a, b) => number(a, "area") - number(b, "area"),
    large: (a, b) => number(b, "area") - number(a, "area"),
  };
  const order = orders[by("order").value];
  cards.sort((a, b) => order(a, b) || number(a, "index") - number(b, "index"));
  list.append(...cards);
}
function turnTo(card) {
  for (const other of list.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  if (card) for (const each of [card, ...card.querySelectorAll("button")]) each.tabIndex = 0;
}
function go(card) {
  if (!card) return;
  turnTo(card);
  card.focus();
}
function decide(card, wanted) {
  const before = shown(), next = before[before.indexOf(card) + 1] || before[before.indexOf(card) - 1];
  if (wanted === "undecided") verdicts.delete(card.dataset.name); else verdicts.set(card.dataset.name, wanted);
  paint(card);
  keep();
  filter();
  return next;
}
function step(card, key) {
  const all = shown(), at = all.indexOf(card), top = all[0].offsetTop;
  const columns = all.findIndex(other => other.offsetTop > top), across = columns < 1 ? all.length : columns;
  const moves = {ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across};
  return all[{...moves, Home: 0, End: all.length - 1}[key]];
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const card = event.target.closest("article:not([hidden])") || list.querySelector("article[tabindex='0']");
  if (key === "o") {
    by("outlines").click();
  } else if (card && key in KEYS) {
    go(decide(card, KEYS[key]) || card);
  } else if (card && /^(Arrow|Home|End)/.test(key)) {
    go(card === document.activeElement ? step(card, key) : card);
  } else if (card && key === "Enter" && event.target === card) {
    card.querySelector("a").click();
  } else {
    return;
  }
  event.preventDefault();
});
list.addEventListener("click", event => {
  const button = event.target.closest("button"), card = event.target.closest("article");
  if (card) turnTo(card);
  if (!button) return;
  const next = decide(card, button.getAttribute("aria-pressed") === "true" ? "undecided" : button.value);
  if (card.hidden) go(next);
});
for (const id of ["name", "category", "verdict"]) by(id).addEventListener("input", filter);
by("order").addEventListener("input", sort);
by("outlines").addEventListener("input", () => document.body.classList.toggle("outlines", by("outlines").checked));
try { for (const [name, its] of JSON.parse(localStorage.getItem(KEY) || "[]")) verdicts.set(name, its); } catch { }
cards.forEach(paint);
by("controls").hidden = by("keys").hidden = false;
for (const each of document.querySelectorAll(".buttons")) each.hidden = false;
filter();
"""
_KEYS = {"a": "accepted", "r": "rejected", "u": "undecided"}


@dataclass(frozen=True)
class Gallery:
    """What was written: the number of samples that the page shows, and why others are missing."""

    shown: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Card:
    """A sample's picture and outline, or why there are none, and the real defect that it is like."""

    row: Row
    picture: bytes = b""
    outline: str = ""
    size: tuple[int, int] = (0, 0)
    """Width and height of the picture."""
    real: str | None = None
    error: str | None = None


@dataclass
class _Reals:
    """The pictures of real defects: each is embedded once, as a style."""

    root: Path
    styles: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The class and the JPEG, in base 64, of each."""

    def add(self, row: Row) -> tuple[str, str] | None:
        """What the picture shows, and its class; an empty class if its file is not there; None if none is known."""
        found = _origin(row)
        if found is None:
            return None
        what, file, box = found
        path = manifest.located(self.root, file)
        key = f"{file} {box}"
        if path.is_file() and key not in self.styles:
            try:
                pixels = read_image(path).as_rgb()
            except BadInputError:  # it is no image any more
                pass
            else:
                whole = Box(0, 0, pixels.shape[1], pixels.shape[0])
                view = _around(box, pixels.shape, _LEAST[_REAL_SIDE]) if box else whole
                jpeg = b64encode(encode_jpeg(_cropped(pixels, view, _REAL_SIDE), _QUALITY)).decode()
                self.styles[key] = f"r{len(self.styles)}", jpeg
        return f"{what}: {Path(file).name}", self.styles.get(key, ("", ""))[0]

    def css(self) -> Iterator[str]:
        for name, data in self.styles.values():
            yield f".{name} {{ background-image: url(data:image/jpeg;base64,{data}); }}"


def is_page(path: Path) -> bool:
    """Whether a file is such a page. Others are not replaced."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def _origin(row: Row) -> tuple[str, str, Box | None] | None:
    """The real defect that a sample is nearest to or was made of: in words, its file, and its box there if known."""
    if row.nearest is not None:
        return "nearest real", row.nearest.file, _box(row.nearest.window)
    if row.reference is not None:
        return "made after", row.reference.file, _box(row.reference.window)
    for each in row.parameters.defects:
        if each.content is not None:
            return "cut out of", each.content, _box(each.box)
    return None


def _box(values: Mapping[str, int] | None) -> Box | None:
    if values is None:
        return None
    side = values.get("side", 0)
    return Box(values["x"], values["y"], values.get("width", side), values.get("height", side))


def write(
    page: Path, root: Path, rows: Sequence[Row], command: str, on_row: Callable[[int], None] = lambda _: None
) -> Gallery:
    """Write the page of a dataset's samples.

    Args:
        page: the file to write.
        root: the folder of the dataset.
        command: that made it, for the line that replaces what is rejected.
        on_row: called with the number of samples that are read.
    """
    reals, skipped, lines, room, linked = _Reals(root), list[str](), list[str](), _BYTES, 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pictures") as pool:
        for number, card in enumerate(pool.map(lambda row: _card(root, row), rows), start=1):
            on_row(number)
            if card.error is not None:
                skipped.append(card.error)
                continue
            room -= len(card.picture) * 4 // 3
            linked += room < 0
            lines.append(_article(card, _link(page, root, card.row.image), reals.add(card.row), embedded=room >= 0))
    counts = Counter(row.category for row in rows)
    title = f"Review: {printable(root.resolve().name)}"
    style = _STYLE + "\n".join(reals.css())
    with files.replacing(page) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in (
            *markup.head(title, style, extra=_MARK),
            *_introduction(len(lines), counts, linked),
            *_controls(counts, command, judged=any(row.distance is not None for row in rows)),
            '<main id="samples">',
            *lines,
            f"</main>\n<script>{_script(root, rows)}</script></html>",
        ):
            file.write(line + "\n")
    return Gallery(len(lines), tuple(skipped))


def _link(page: Path, root: Path, name: str) -> str:
    """A link from the page to a file of the dataset."""
    return quote(Path(os.path.relpath(root / name, page.absolute().parent)).as_posix())


def _card(root: Path, row: Row) -> _Card:
    try:
        pixels = read_image(files.inside(root, row.image)).as_rgb()
        mask = read_mask(files.inside(root, row.mask))
    except BadInputError as error:
        return _Card(row, error=str(error))
    if mask.shape != pixels.shape[:2]:
        return _Card(row, error=f"{root / row.mask}: is not as large as its image")
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    view = _around(Box(x, y, width, height), mask.shape, _LEAST[_SIDE])
    picture = _cropped(pixels, view, _SIDE)
    inside = mask[view.y : view.y + view.height, view.x : view.x + view.width].astype(np.uint8)
    size = picture.shape[1], picture.shape[0]
    small = cv2.resize(inside * 255, size, interpolation=cv2.INTER_LINEAR) > 127
    return _Card(row, encode_jpeg(picture, _QUALITY), _path(small), size)


def _around(box: Box, shape: tuple[int, ...], least: int) -> Box:
    """What to show of an image of `shape`, [H, W], so that a box in it is large and its surroundings are seen."""
    height, width = shape[:2]
    side = max(least, round(_ROOM * max(box.width, box.height)))
    if side >= _NEARLY_ALL * max(height, width):
        return Box(0, 0, width, height)
    left, top = (
        min(max(0, start + length // 2 - side // 2), max(0, end - side))
        for start, length, end in ((box.x, box.width, width), (box.y, box.height, height))
    )
    return Box(left, top, min(side, width), min(side, height))


def _cropped(pixels: NDArray[np.uint8], view: Box, side: int) -> NDArray[np.uint8]:
    """A part of an image, its longer side scaled to `side`."""
    part = pixels[view.y : view.y + view.height, view.x : view.x + view.width]
    scale = side / max(part.shape[:2])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)


def _path(mask: NDArray[np.bool_]) -> str:
    """The outline of a mask, [H, W], as the `d` of an SVG path."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for line in lines:
        points = np.asarray(cv2.approxPolyDP(line, _TOLERANCE, closed=True)).reshape(-1, 2)
        parts.append("M" + "L".join(f"{x}.5 {y}.5" for x, y in points.tolist()) + "Z")
    return "".join(parts)


def _introduction(count: int, counts: Mapping[str, int], linked: int) -> Iterator[str]:
    each = ", ".join(f"{number} {printable(category)}" for category, number in sorted(counts.items()))
    yield f"<p>{count} samples: {escape(each)}. Outlines show while the mouse or the focus is on a sample.</p>"
    yield (
        '<p id="keys" class="small" hidden><kbd>A</kbd> accept, <kbd>R</kbd> reject, <kbd>U</kbd> undecided, arrow '
        "keys: move, <kbd>O</kbd> outlines of all, <kbd>Enter</kbd> whole image. Verdicts stay in this browser."
        '<strong id="unkept" hidden> This browser does not keep them: export before you leave.</strong></p>'
    )
    if linked:
        yield f"<p><strong>{linked} pictures are too many for this page: it shows the dataset's own files.</strong></p>"


def _controls(counts: Mapping[str, int], command: str, *, judged: bool) -> Iterator[str]:
    names = [("", "all"), *((name, printable(name)) for name in sorted(counts))]
    orders = [(key, name) for key, name in _ORDERS.items() if judged or key != "distance"]
    yield '<form id="controls" hidden onsubmit="return false">'
    yield _select("category", "category", names)
    yield _select("verdict", "verdict", [("", "all"), *((name, name) for name in _VERDICTS)])
    yield _select("order", "order", orders)
    yield '<label>name contains <input type="search" id="name"></label>'
    yield '<label><input type="checkbox" id="outlines"> outlines</label>'
    yield '<a id="export" download="rejected.txt" aria-disabled="true">Export rejected.txt</a>'
    yield '<output id="count"></output></form>'
    yield (
        '<p id="next" hidden>To replace what is rejected by others: export, and run this where the dataset was made '
        f"(with the path of the exported file): <code>{escape(_again(command))}</code></p>"
    )


def _select(name: str, label: str, values: Sequence[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values)
    return f'<label>{label} <select id="{name}">{options}</select></label>'


def _again(command: str) -> str:
    """The command that replaces rejected samples of a dataset that `command` made."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = ["..."]
    kept = list[str]()
    for word in words:
        if kept and kept[-1] == "--reject":
            kept.pop()
        elif word not in ("--resume", "--overwrite") and not word.startswith("--reject="):
            kept.append(word)
    return printable(shlex.join([*kept, "--resume", "--reject", "rejected.txt"]))


def _article(card: _Card, link: str, real: tuple[str, str] | None, *, embedded: bool) -> str:
    row = card.row
    category, number = printable(row.category), f"{row.index:06}"
    defects = f"{len(row.boxes)} defect{'s' * (len(row.boxes) != 1)} of {row.area} pixels"
    alt = f"Sample {number}: {category}, {defects}"
    facts = [f"<strong>{number}</strong> {escape(category)}", f"{row.area} pixels"]
    values = {"name": row.image, "index": row.index, "category": row.category, "area": row.area}
    if row.distance is not None:
        values["distance"] = row.distance
        facts.append(f"gate {row.distance:.2f} (limit 1)")
    shown = ""
    if real is not None:
        what, style = real
        facts.append(escape(printable(what)))
        if style:
            shown = f'<span class="real {style}" role="img" aria-label="{escape(printable(what))}"></span>'
    data = "".join(f' data-{key}="{escape(str(value))}"' for key, value in values.items())
    width, height = card.size
    outline, picture = f'<path d="{card.outline}"/>', markup.image(card.picture, alt)
    if not embedded:
        outline, picture = "", f'<img alt="{escape(alt)}" src="{link}" loading="lazy">'
    buttons = "".join(
        f'<button type="button" value="{verdict}" aria-pressed="false" tabindex="-1">{word}</button>'
        for verdict, word in (("accepted", "Accept"), ("rejected", "Reject"))
    )
    return (
        f'<article tabindex="-1" aria-label="{escape(alt)}"{data}>'
        f'<a class="picture" href="{link}" tabindex="-1">{picture}'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{outline}</svg></a>'
        f'<div class="facts">{shown}<p>{"<br>".join(facts)}</p></div>'
        f'<div class="buttons" hidden>{buttons}</div></article>'
    )


def _script(root: Path, rows: Sequence[Row]) -> str:
    """Without it the page only shows the samples. Verdicts are kept under a key of the run that made these."""
    run: Any = rows[0].run if rows else {}
    identity = hashlib.sha256(f"{root.resolve().name} {json.dumps(run, sort_keys=True)}".encode(errors="replace"))
    values = {"KEY": f"defectgen-review-{identity.hexdigest()[:16]}", "KEYS": _KEYS}
    return "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items()) + _SCRIPT
