"""The report for people: one HTML file with its images, curves and tables inside."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.folders import NORMAL
from defectgen.imaging.images import encode_jpeg

Pixels = NDArray[np.uint8]
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: .5em 0 1.5em; } th, td { padding: .25em .9em; text-align: right; }
th { border-bottom: 1px solid #999; font-weight: 600; } td:first-child, th:first-child { text-align: left; }
img { display: block; margin: .2em 0 .8em; max-width: 100%; } figure { display: inline-block; margin: 0 1em 1em 0; }
.helps { color: #06652f; } .hurts { color: #a3151f; } .verdict { font-size: 1.2em; font-weight: 600; }
.small { color: #666; font-size: .9em; }
"""
_COLOURS = {"real": "#888", "traditional": "#2166ac", "synthetic": "#b2182b"}
_NAMES = {
    "real": "real photographs alone", "traditional": "with traditional augmentation",
    "synthetic": "with that and the synthetic images",
}  # fmt: skip
_COLUMNS = {
    "real": "real", "synthetic": "synthetic", "swd": "sliced Wasserstein", "swd_of_real_halves": "of real halves",
    "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "clustered_lpips": "clustered LPIPS",
}  # fmt: skip


def write(path: Path, found: Mapping[str, Any], sheets: Mapping[str, Any]) -> None:
    """Write what `evaluate` found, and the windows to look at, into one file."""
    title = f"Does {Path(found['synthetic']).name} help?"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
        *_verdicts(found),
        *_downstream(found["downstream"]),
        *_fidelity(found["fidelity"]),
        *_memorisation(found["memorisation"], sheets["pairs"]),
        *_masks(found["mask_agreement"]),
        "<h2>Windows around defects</h2>",
        *(f'<p class="small">{escape(name)}</p>{_image(strip)}' for name, strip in sheets["windows"]),
        *_what(found),
        "</html>",
    ]
    files.write(path, "\n".join(parts) + "\n")


def _verdicts(found: Mapping[str, Any]) -> list[str]:
    lines = []
    tested = sum(count for name, count in found["counts"]["real_test"].items() if name != NORMAL)
    for task, of_task in found["downstream"].items():
        against = of_task["against_baseline"]
        kind = against["verdict"].split()[0]
        p = "no test" if against["p"] is None else f"p = {against['p']:.3f}"
        told = (
            f"{of_task['decided_by']} {against['difference']:+.3f} against {_NAMES[of_task['baseline']]}, the better "
            f"of the two; paired t-test over {against['seeds']} seeds, {p}. With few seeds only large differences can "
            f"be told from chance; and it is the chance of training alone: the test has {tested} defects."
        )
        verdict = f"{task.capitalize()}: {against['verdict']}"
        lines.append(f'<p class="verdict {kind}">{escape(verdict)}</p><p class="small">{escape(told)}</p>')
    return lines


def _downstream(tasks: Mapping[str, Any]) -> list[str]:
    parts = []
    for task, of_task in tasks.items():
        names = list(next(iter(of_task["scores"].values())))
        rows = [
            [_NAMES[arm], *(f"{scores[name]['mean']:.3f} ± {scores[name]['spread']:.3f}" for name in names)]
            for arm, scores in of_task["scores"].items()
        ]
        parts += [f"<h2>{escape(task.capitalize())} of real photographs kept apart</h2>", _table(["", *names], rows)]
        if "curves" in of_task:
            parts.append(_curves(of_task["curves"]))
    return parts


def _fidelity(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not found:
        return []
    names = list(next(iter(found.values())))
    rows = [
        [category, *(f"{of[name]:.0f}" if name in ("real", "synthetic") else f"{of[name]:.3g}" for name in names)]
        for category, of in found.items()
    ]
    note = (
        "The sliced Wasserstein distance of the patches (× 1000) needs no trained network; that between two halves of "
        "the real photographs, which are fewer, is what chance alone makes of it."
    )
    if "fid" not in names:
        note += " FID and KID need a feature network: --features inception=FILE."
    table = _table(["category", *(_COLUMNS[name] for name in names)], rows)
    return ["<h2>How near to real defects</h2>", table, f'<p class="small">{note}</p>']


def _memorisation(found: Mapping[str, Any], pairs: Sequence[tuple[Pixels, float]]) -> list[str]:
    figures = [
        f"<figure>{_image(strip)}<figcaption>{similarity:.2f}</figcaption></figure>" for strip, similarity in pairs
    ]
    return [
        "<h2>Copies</h2>",
        f"<p>{found['near_copies']} of {found['of']} synthetic defects are near-copies of a real one: more alike than "
        f"{found['threshold']:.2f} of 1. So are {100 * found['share_among_real']:.0f}% of the real ones among "
        "themselves. The nearest pairs, synthetic on the left:</p>",
        *figures,
    ]


def _masks(found: Mapping[str, float] | None) -> list[str]:
    if found is None:
        return ["<h2>Masks</h2>", "<p>Not compared: the photographs that the samples were made on were not found.</p>"]
    return [
        "<h2>Masks</h2>",
        f"<p>IoU of the mask with what differs from the source photograph: {found['median_iou']:.2f} in the median of "
        f"{found['compared']:.0f}; below a half for {100 * found['below_a_half']:.0f}%.</p>",
    ]


def _what(found: Mapping[str, Any]) -> list[str]:
    counts = found["counts"]
    rows = [
        [name.replace("_", " "), ", ".join(f"{category} {count}" for category, count in of.items())]
        for name, of in counts.items()
        if isinstance(of, Mapping)
    ]
    notes = []
    if counts["left_out_as_near_duplicates"]:
        notes.append(f"{counts['left_out_as_near_duplicates']} near-duplicates of test photographs were left out.")
    if not found["traceable"]:
        notes.append("The dataset does not say what it was made of: that no test photograph is in it is unchecked.")
    elif found["made_by_model"] and not found["trained_on_known"]:
        notes.append("What its model was trained on is not written in the dataset, and unchecked.")
    extent = ", ".join(f"{name} {value}" for name, value in found["extent"].items())
    how = f"{extent}, seed {found['seed']}, on {found['device']}, defectgen {found['defectgen']}."
    return [
        "<h2>What was compared</h2>",
        _table(["", "photographs"], rows),
        f'<p class="small">{escape(" ".join([*notes, how]))}</p>',
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(cells)}</table>"


def _image(pixels: Pixels) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encode_jpeg(pixels)).decode()}">'


def _curves(curves: Mapping[str, Sequence[float]], width: int = 360, height: int = 220) -> str:
    """Precision over recall, a line an arm."""
    lines = []
    for number, (arm, values) in enumerate(curves.items()):
        points = " ".join(
            f"{40 + i * (width - 50) / (len(values) - 1):.1f},{10 + (1 - value) * (height - 40):.1f}"
            for i, value in enumerate(values)
        )
        lines.append(f'<polyline fill="none" stroke="{_COLOURS[arm]}" stroke-width="2" points="{points}"/>')
        lines.append(
            f'<text x="{width - 10}" y="{24 + 16 * number}" text-anchor="end" fill="{_COLOURS[arm]}">{arm}</text>'
        )
    axes = (
        f'<path d="M40 10V{height - 30}H{width - 10}" fill="none" stroke="#999"/>'
        f'<text x="{width - 10}" y="{height - 12}" text-anchor="end">recall</text>'
        '<text x="4" y="20">1</text><text x="4" y="100" font-size="11">prec.</text>'
    )
    return f'<svg width="{width}" height="{height}" font-size="12">{axes}{"".join(lines)}</svg>'
