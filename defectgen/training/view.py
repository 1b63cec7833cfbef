"""`index.html` of a run folder: a page that follows a training, with previews, losses and the time left."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from defectgen import files, markup, ranks
from defectgen.errors import UserError
from defectgen.text import duration, printable, speed

NAME: Final = "index.html"
LOG_EVERY: Final = 10  # steps
PREVIEWS: Final = "previews"
_TWINS = "twins.jpg"

_EVERY = 10.0  # seconds between two versions of the page
POINTS = 150  # of a curve; more are averaged
_EARLIER = 12  # previews that the page links
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM = 284, 150, 58, 276, 112  # of a plot, in pixels
_MARGIN = 2  # percent of the values that may lie above a plot, and below

_STYLE = """
progress { width: 100%; height: 1.2em; } .trouble { color: var(--bad); font-weight: 600; }
.preview { display: grid; gap: 0 .6em; margin: 0 0 1.5em; max-width: 56em; }
.preview img { width: 100%; height: 100%; margin: 0; grid-row: 2 / -1; grid-column: 2 / -1; }
.preview b { text-align: center; font-size: clamp(.75rem, 2.6vw, .95rem); }
.preview b.row { align-self: center; text-align: right; }
.losses { display: flex; flex-wrap: wrap; } .losses figcaption { font-weight: 600; }
details img { width: 100%; max-width: 56em; }
"""

_SCRIPT = """
"use strict";
const told = document.getElementById("told"), minutes = Math.floor((Date.now() / 1000 - told.dataset.at) / 60);
if (minutes) told.textContent += `; no news for ${minutes} min: it was killed, or a step takes long`;
"""


class Sheet:
    """A preview: its file in the folder of previews, and what its columns and rows are."""

    def __init__(self, name: str, columns: Sequence[str], rows: Sequence[str]) -> None:
        self.name, self.columns, self.rows = name, tuple(columns), tuple(rows)


class View:
    """Writes the page of a run every few seconds. It never ends a training: the page is only for people."""

    def __init__(self, folder: Path, name: str, metrics: Path, step: int = 0, steps: int = 0) -> None:
        """Start after `step` steps of `steps`, with the losses that an earlier part of the run left in `metrics`."""
        self._folder, self._name = folder, name
        self._step, self._steps = step, steps
        self._rows = list(_read(metrics))
        self._sheets: list[Sheet] = []
        self._troubles: list[str] = []
        self._written = -_EVERY

    def log(self, row: Mapping[str, float]) -> None:
        """Add the losses of a step."""
        self._rows.append(dict(row))

    def preview(self, *sheets: Sheet) -> None:
        """Show new previews from now on."""
        self._sheets = list(sheets)
        self._written = -_EVERY

    def step(
        self, step: int, steps: int, images_per_second: float, seconds_left: float, trouble: str | None = None
    ) -> None:
        """Tell how far the training is, and what is wrong if something is; writes the page if it is time."""
        self._step, self._steps = step, steps
        if trouble is not None and trouble not in self._troubles:
            self._troubles.append(trouble)
        if time.monotonic() - self._written >= _EVERY:
            self._write(f"{speed(images_per_second, 'images')}, {duration(seconds_left)} left", running=True)

    def end(self, text: str) -> None:
        """Write the page for the last time: it does not refresh itself any more."""
        self._write(text, running=False)

    def _write(self, text: str, *, running: bool) -> None:
        if not ranks.is_main():
            return
        with suppress(UserError, OSError):
            files.write(self._folder / NAME, "\n".join(self._lines(text, running=running)) + "\n")
        self._written = time.monotonic()

    def _lines(self, text: str, *, running: bool) -> Iterator[str]:
        now = datetime.now().astimezone()
        refresh = f'<meta http-equiv="refresh" content="{_EVERY:.0f}">' if running else ""
        yield from markup.head(f"Training: {printable(self._name)}", _STYLE, extra=refresh)
        yield f'<progress value="{self._step}" max="{max(self._steps, 1)}" aria-label="steps"></progress>'
        yield f'<p class="verdict">Step {self._step:,} of {self._steps:,}: {escape(printable(text))}</p>'
        yield from (f'<p class="trouble">{escape(printable(each))}</p>' for each in self._troubles)
        at = f'<span id="told" data-at="{now.timestamp():.0f}">As of {now:%H:%M:%S}</span>'
        yield f'<p class="small">{at}{". The page refreshes itself." if running else "."}</p>'
        yield from self._previews()
        if self._rows:
            yield "<h2>Losses</h2>"
            yield '<p class="small">What the networks minimize against each other: look at the previews, too.</p>'
            yield f'<div class="losses">{"".join(map(self._plot, self._names()))}</div>'
        yield f"<script>{_SCRIPT if running else ''}</script></html>"

    def _previews(self) -> Iterator[str]:
        yield "<h2>Previews</h2>"
        folder = self._folder / PREVIEWS
        for sheet in self._sheets:
            with suppress(OSError):
                yield _preview(sheet, (folder / sheet.name).read_bytes())
        now = {sheet.name for sheet in self._sheets}
        others = sorted((path.name for path in folder.glob("*.jpg") if path.name not in now), reverse=True)
        if not self._sheets and others in ([], [_TWINS]):
            yield "<p>There are none yet.</p>"
        for name in others[:_EARLIER]:
            what = "Defects, and below the same repaired" if name == _TWINS else f"Earlier: {printable(name)}"
            newest = not self._sheets and name == next((each for each in others if each != _TWINS), None)
            yield (
                f"<details{' open' if newest else ''}><summary>{escape(what)}</summary>"
                f'<img alt="{escape(what)}" src="{PREVIEWS}/{name}" loading="lazy"></details>'
            )

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self._rows for name in row if name not in ("step", "seconds")))

    def _plot(self, name: str) -> str:
        """The curve of a loss over the steps."""
        points = np.array([(row["step"], row[name]) for row in self._rows if name in row], np.float64)
        parts = np.array_split(points, min(len(points), POINTS))
        curve = np.stack([part.mean(axis=0) for part in parts])
        low, high = np.percentile(curve[:, 1], [_MARGIN, 100 - _MARGIN])
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        last = max(points[-1, 0], 1.0)
        x = _LEFT + curve[:, 0] / last * (_RIGHT - _LEFT)
        y = _BOTTOM - np.clip((curve[:, 1] - low) / (high - low), 0, 1) * (_BOTTOM - 12)
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        now = f"{float(points[-1, 1]):.3g}"
        frame = markup.axes(
            _LEFT, _RIGHT, _BOTTOM, x=("step", "0", f"{last:,.0f}"), y=("loss", f"{low:.3g}", f"{high:.3g}")
        )
        label = f"Loss {name} over the steps, now {now}"
        plot = markup.plot(
            _WIDTH,
            _HEIGHT,
            label,
            [frame, f'<polyline fill="none" stroke="#2f7ee6" stroke-width="2" points="{line}"/>'],
        )
        return f"<figure><figcaption>{escape(name)}: {now}</figcaption>{plot}</figure>"


def _preview(sheet: Sheet, jpeg: bytes) -> str:
    """A preview with headings for its columns and rows, which lie beside them at any width."""
    alt = f"{len(sheet.rows)} rows: {', '.join(dict.fromkeys(sheet.rows))}; columns: {', '.join(sheet.columns)}"
    style = (
        f"grid-template-columns: fit-content(7em) repeat({len(sheet.columns)}, minmax(0, 1fr)); "
        f"grid-template-rows: auto repeat({len(sheet.rows)}, minmax(0, 1fr)); gap: 0"
    )
    heads = "".join(f"<b>{escape(each)}</b>" for each in ("", *sheet.columns))
    rows = "".join(
        f'<b class="row" style="grid-row: {number}; padding-right: .5em">{escape(printable(each))}</b>'
        for number, each in enumerate(sheet.rows, start=2)
    )
    return f'<div class="preview" style="{style}">{heads}{rows}{markup.image(jpeg, alt)}</div>'


def _read(metrics: Path) -> Iterator[dict[str, float]]:
    """The rows of a file of metrics, as far as they can be read."""
    with suppress(OSError, ValueError, TypeError):
        for line in metrics.read_bytes().splitlines():
            row = {str(key): float(value) for key, value in dict(json.loads(line)).items()}
            if "step" in row:
                yield row
