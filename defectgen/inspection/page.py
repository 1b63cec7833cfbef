"""Writes `report.html`: all images of an inspection by their scores, in one file with embedded thumbnails."""

import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from defectgen import files, markup
from defectgen.inspection.record import Record
from defectgen.inspection.scores import LEARNED
from defectgen.inspection.thumbnails import COLUMNS
from defectgen.text import printable

NEAR = 50
"""Flawless images with thumbnails: those of the highest scores."""

_ROWS = 5_000  # of each verdict
_BYTES = 35_000_000  # of embedded thumbnails
_BINS = 50
_VERDICTS = {True: "defective", False: "flawless", None: "not judged"}
_CLASSES = {True: "defective", False: "flawless", None: "error"}
_NAMES = ("image", "verdict", "score", "threshold", "defects", "area (pixels)")
_SORTED_BY = (0, 2, 4, 5)  # columns
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM = 640, 200, 60, 620, 160  # of the histogram, in pixels

_STYLE = """
body { max-width: 72em; } #images { width: 100%; }
#images thead th { position: sticky; top: 0; background: var(--ground); }
#images tbody { border-bottom: 1px solid var(--line); } #images td { vertical-align: top; }
#images td:first-child { overflow-wrap: anywhere; min-width: 12em; } #images td[colspan] { text-align: left; }
.defective td:nth-child(2), .error td { color: var(--bad); font-weight: 600; }
.flawless td:nth-child(2) { color: var(--good); }
#images figure { display: block; margin: 0; width: fit-content; max-width: 100%; } #images img { margin: .2em 0; }
figcaption, .columns { color: var(--soft); font-size: .9em; }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; }
fieldset { border: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .4em 1.5em; align-items: center; }
fieldset, svg { max-width: 100%; } [hidden] { display: none !important; } #threshold { width: 20em; max-width: 60vw; }
th button { all: unset; cursor: pointer; text-decoration: underline; } th button:focus-visible { outline: 2px solid; }
[aria-sort=descending] button::after { content: " \\2193"; } [aria-sort=ascending] button::after { content: " \\2191"; }
"""

_SCRIPT = """
"use strict";
const by = id => document.getElementById(id), table = by("images"), bodies = [...table.tBodies];
const text = (body, column) => body.rows[0].cells[column].textContent;
const number = (body, column) => text(body, column) === "" ? -1 : Number(text(body, column));
const names = new Map(bodies.map(body => [body, text(body, 0).toLowerCase()]));
function filter() {
  const part = by("name").value.toLowerCase();
  let count = 0;
  for (const body of bodies) {
    body.hidden = !(by(body.className).checked && names.get(body).includes(part));
    count += !body.hidden;
  }
  by("count").textContent = `${count} of ${bodies.length} rows shown`;
}
function sort(header, column) {
  const up = header.getAttribute("aria-sort") === "descending" || (column === 0 && !header.hasAttribute("aria-sort"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const compared = column === 0
    ? (a, b) => text(a, 0).localeCompare(text(b, 0), undefined, {numeric: true})
    : (a, b) => number(a, column) - number(b, column);
  bodies.sort((a, b) => up ? compared(a, b) : compared(b, a));
  table.append(...bodies);
}
for (const column of SORTED_BY) {
  const header = table.tHead.rows[0].cells[column], button = document.createElement("button");
  button.type = "button";
  button.textContent = header.textContent;
  button.addEventListener("click", () => sort(header, column));
  header.replaceChildren(button);
}
for (const id of ["defective", "flawless", "error", "name"]) by(id).addEventListener("input", filter);
if (by("threshold")) by("threshold").addEventListener("input", () => {
  const threshold = Number(by("threshold").value), x = LEFT + (RIGHT - LEFT) * threshold / TOP;
  const count = SCORES.filter(score => score > threshold).length;
  by("would").textContent = `${threshold.toFixed(4)}: ${count} of ${SCORES.length} images would be defective`;
  by("slid").setAttribute("d", `M${x} 10V${BOTTOM}`);
});
by("controls").hidden = false;
filter();
"""


def write(path: Path, records: Sequence[Record], path_of: Callable[[str], Path]) -> None:
    """Write the page.

    Args:
        records: the record of each image.
        path_of: the path of a file that a record names.
    """
    groups = {verdict: _sorted(records, verdict) for verdict in _VERDICTS}
    shown = sorted((each for of in groups.values() for each in of[:_ROWS]), key=_order)
    pictures = _pictures(groups, path_of)
    judged = groups[True] + groups[False]
    title = f"Inspection: {len(groups[True])} of {len(records)} images defective"
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in (
            *markup.head(title, _STYLE),
            *_summary(groups, pictures),
            *(_histogram(judged) if judged else ()),
            *_controls(groups, judged),
        ):
            file.write(line + "\n")
        for record in shown:
            file.write(_row(record, pictures.embedded.get(record.image)) + "\n")
        file.write(f"</table>\n<script>{_script(judged)}</script></html>\n")


def _sorted(records: Sequence[Record], verdict: bool | None) -> list[Record]:
    return sorted((each for each in records if each.defective is verdict), key=_order)


def _order(record: Record) -> tuple[float, str]:
    """The highest score first, then those without one."""
    return (float("inf") if record.score is None else -record.score), record.image


class _Pictures(NamedTuple):
    """The files of the thumbnails that the page embeds, by image, and how many images have others."""

    embedded: dict[str, Path]
    left_out: int


def _pictures(groups: dict[bool | None, list[Record]], path_of: Callable[[str], Path]) -> _Pictures:
    embedded = dict[str, Path]()
    left_out, room = 0, _BYTES
    for record in (*groups[True], *groups[False][:NEAR]):
        path = path_of(record.thumbnail) if record.thumbnail else None
        if path is None or not path.is_file():  # made by an earlier version, or deleted
            continue
        room -= (path.stat().st_size + 2) // 3 * 4
        if room >= 0 and len(embedded) < _ROWS:
            embedded[record.image] = path
        else:
            left_out += 1
    return _Pictures(embedded, left_out)


def _summary(groups: dict[bool | None, list[Record]], pictures: _Pictures) -> Iterator[str]:
    counts = ", ".join(f"{len(groups[verdict])} {name}" for verdict, name in _VERDICTS.items())
    judged = next(iter(groups[True] + groups[False]), None)
    settings = ""
    if judged is not None:
        parts = [f"threshold {judged.threshold}"] if judged.threshold is not None else []
        parts += [f"score {judged.scorer}"] if judged.scorer else []
        how = "judged by" if judged.scorer in LEARNED else "compared with"
        parts += [f"{how} {judged.reference}"] if judged.reference else []
        parts += [f"{judged.border} pixels along the edges ignored"] if judged.border else []
        settings = "; " + ", ".join(parts) if parts else ""
    yield f'<p class="verdict">{escape(printable(counts + settings))}</p>'
    yield (
        '<p class="small">Sorted by score, that of the worst place, 0 to 2. '
        "Where there are two rows of pictures, the second shows the part in the blue frame. Score maps are black at 0, "
        "red at the threshold, and pale yellow at twice the threshold. Flawless images have pictures if they "
        f"are among the {NEAR} with the highest scores.</p>"
    )
    notes = [
        f"{len(of) - _ROWS} {_VERDICTS[verdict]} images more are in report.csv."
        for verdict, of in groups.items()
        if len(of) > _ROWS
    ]
    if pictures.left_out:
        notes.append(
            f"The pictures of {pictures.left_out} images with lower scores would make this page too large; they are in "
            "the folder thumbnails."
        )
    yield from (f"<p><strong>{escape(note)}</strong></p>" for note in notes)


def _controls(groups: dict[bool | None, list[Record]], judged: Sequence[Record]) -> Iterator[str]:
    boxes = "".join(
        f'<label><input type="checkbox" id="{_CLASSES[verdict]}" checked> {name} ({len(groups[verdict])})</label>'
        for verdict, name in _VERDICTS.items()
    )
    yield f'<fieldset id="controls" hidden><legend>Show</legend>{boxes}'
    yield '<label>name contains <input type="search" id="name"></label> <output id="count"></output>'
    if judged and (threshold := judged[0].threshold) is not None:
        yield (
            f'<label>threshold <input type="range" id="threshold" min="0" max="{_top(judged):.5g}" step="any" '
            f'value="{threshold}"></label><output id="would" for="threshold">{threshold:.4f}: {len(groups[True])} of '
            f"{len(judged)} images are defective</output>"
        )
    yield "</fieldset>"
    sort = {2: ' aria-sort="descending"'}
    head = "".join(f'<th scope="col"{sort.get(i, "")}>{name}</th>' for i, name in enumerate(_NAMES))
    yield f'<table id="images"><thead><tr>{head}</tr></thead>'


def _row(record: Record, thumbnails: Path | None) -> str:
    """The rows of an image: its numbers, and its thumbnails or why there are none."""
    name = printable(record.image)
    values = [name, _VERDICTS[record.defective], *([""] * 4)]
    if record.defective is not None:
        figures = (record.score, record.threshold, len(record.boxes), sum(record.areas))
        values[2:] = ["" if each is None else str(each) for each in figures]
    lines = [f'<tbody class="{_CLASSES[record.defective]}"><tr>']
    lines += [f"<td>{escape(value)}</td>" for value in values]
    lines.append("</tr>")
    if record.error is not None:
        lines.append(f'<tr><td colspan="{len(_NAMES)}">{escape(printable(record.error))}</td></tr>')
    if thumbnails is not None or record.defective:
        lines.append(f'<tr><td colspan="{len(_NAMES)}">{_figure(record, name, thumbnails)}</td></tr>')
    return "".join([*lines, "</tbody>"])


def _figure(record: Record, name: str, thumbnails: Path | None) -> str:
    """An image's thumbnails, if they are embedded, and links to its files."""
    named = {"outlines in full size": record.overlay, "mask": record.mask}
    shown = ""
    if thumbnails is None:
        named = {"pictures (not in this page)": record.thumbnail, **named}
    else:
        names = [column for column in COLUMNS if not (column == COLUMNS[2] and record.scorer in LEARNED)]
        columns = "".join(f"<span>{column}</span>" for column in names)
        picture = markup.image(thumbnails.read_bytes(), f"{name}: {', '.join(names)}, from the left")
        shown = f'{picture}<div class="columns">{columns}</div>'
    links = ", ".join(f'<a href="{quote(file)}">{what}</a>' for what, file in named.items() if file is not None)
    return f"<figure>{shown}<figcaption>{links}</figcaption></figure>"


def _scores(judged: Sequence[Record]) -> list[float]:
    return [each.score for each in judged if each.score is not None]


def _top(judged: Sequence[Record]) -> float:
    """The score at the right end of the histogram and of the slider."""
    return max([1e-3, judged[0].threshold or 0.0, *_scores(judged)]) * 1.05


def _histogram(judged: Sequence[Record]) -> list[str]:
    """How many images have which score, and the threshold, as a plot."""
    top, threshold = _top(judged), judged[0].threshold
    above, below = (
        np.histogram(_scores([each for each in judged if each.defective is verdict]), _BINS, (0, top))[0]
        for verdict in (True, False)
    )
    most, step = int((above + below).max()) or 1, (_RIGHT - _LEFT) / _BINS
    bars = []
    for i, (defective, flawless) in enumerate(zip(above.tolist(), below.tolist(), strict=True)):
        y = float(_BOTTOM)
        for count, color in ((flawless, "#5b7fa6"), (defective, "#b2182b")):
            height = max(count * (_BOTTOM - 10) / most, 2) if count else 0  # a single image stays visible
            y -= height
            bars.append(
                f'<rect x="{_LEFT + i * step:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{height:.1f}" '
                f'fill="{color}"/>' * bool(count)
            )
    marks = []
    if threshold is not None:
        x = _LEFT + threshold / top * (_RIGHT - _LEFT)
        side = ("end", -5) if x > (_LEFT + _RIGHT) / 2 else ("start", 5)
        marks = [
            f'<path d="M{x:.1f} 10V{_BOTTOM}" stroke="currentColor" stroke-width="1.5" stroke-dasharray="5 3"/>',
            '<path id="slid" stroke="#762a83" stroke-width="1.5"/>',
            f'<text x="{x + side[1]:.1f}" y="20" text-anchor="{side[0]}">threshold {threshold}</text>',
        ]
    frame = markup.axes(_LEFT, _RIGHT, _BOTTOM, x=("score", "0", f"{top:.3g}"), y=("images", "0", str(most)))
    label = f"Histogram of the scores of {len(judged)} images, with the threshold {threshold}"
    plot = markup.plot(_WIDTH, _HEIGHT, label, [frame, *bars, *marks])
    return [f"<figure>{plot}<figcaption>Red: defective. Blue: flawless.</figcaption></figure>"]


def _script(judged: Sequence[Record]) -> str:
    """The page works without it, and then shows all rows."""
    values = {
        "SCORES": _scores(judged), "TOP": _top(judged) if judged else 1, "LEFT": _LEFT, "RIGHT": _RIGHT,
        "BOTTOM": _BOTTOM, "SORTED_BY": _SORTED_BY,
    }  # fmt: skip
    return "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items()) + _SCRIPT
