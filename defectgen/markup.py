"""What the HTML reports share: single files with embedded images and SVG plots, which need no other file."""

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --soft: #595959; --line: #999; --good: #06652f;
  --bad: #a3151f; --doubt: #7a5200; --mark: #c2101c; }
@media (prefers-color-scheme: dark) { :root { --ground: #17191c; --ink: #e6e6e6; --soft: #ababab; --line: #6b6b6b;
  --good: #74d69c; --bad: #ff9494; --doubt: #f0c060; --mark: #ff4d57; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: var(--ink);
  background: var(--ground); overflow-wrap: break-word; }
.wide { overflow-x: auto; } .wide td:not(:first-child) { white-space: nowrap; }
table { border-collapse: collapse; margin: .5em 0 1.5em; } th, td { padding: .25em .9em; text-align: right; }
th { border-bottom: 1px solid var(--line); font-weight: 600; } td:first-child, th:first-child { text-align: left; }
img { display: block; margin: .2em 0 .8em; max-width: 100%; } figure { display: inline-block; margin: 0 1em 1em 0; }
svg { max-width: 100%; height: auto; } svg text:not([fill]) { fill: currentColor; }
.helps { color: var(--good); } .hurts, .do { color: var(--bad); }
.cannot { color: var(--doubt); } .verdict { font-size: 1.2em; font-weight: 600; }
.small { color: var(--soft); font-size: .9em; }
a { color: inherit; } :focus-visible { outline: 3px solid #2f7ee6; outline-offset: 1px; }
"""


def head(title: str, style: str = "", *, extra: str = "") -> list[str]:
    """The lines that a page begins with, up to its heading.

    Args:
        style: CSS beyond that of all pages.
        extra: further elements of the head.
    """
    return [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width">{extra}',
        f"<style>{_STYLE}{style}</style><h1>{escape(title)}</h1>",
    ]


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text below a row of names."""
    cells = ["<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in names) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(cells)}</table></div>'


def image(jpeg: bytes, alt: str) -> str:
    """An embedded JPEG; `alt` says what it shows."""
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def axes(left: int, right: int, bottom: int, *, x: tuple[str, str, str], y: tuple[str, str, str]) -> str:
    """The axes of an SVG plot from `left` to `right` and from 10 to `bottom`: each a name, its first and last value."""
    return (
        f'<path d="M{left} 10V{bottom}H{right}" fill="none" stroke="#999"/>'
        f'<text x="{left}" y="{bottom + 16}">{escape(x[1])}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{escape(x[2])}</text>'
        f'<text x="{(left + right) // 2}" y="{bottom + 32}" text-anchor="middle">{escape(x[0])}</text>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{escape(y[2])}</text>'
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">{escape(y[1])}</text>'
        f'<text transform="translate(16,{bottom // 2}) rotate(-90)" text-anchor="middle">{escape(y[0])}</text>'
    )


def plot(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """An SVG plot of these parts; `label` says what it shows."""
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-size="12" role="img" '
        f'aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
