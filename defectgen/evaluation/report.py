"""Writes the HTML report: a single file with embedded images, curves and tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectgen import files, markup
from defectgen.evaluation.learning import NAMES
from defectgen.folders import NORMAL
from defectgen.imaging.images import encode_jpeg
from defectgen.text import printable

Pixels = NDArray[np.uint8]
_COLORS = ("#888", "#2166ac", "#5aae61", "#b2182b", "#f4a582", "#762a83", "#c2a5cf", "#8c510a", "#dfc27d")
_SETS = {
    "none": "real images as they are", "traditional": "with flips, brightness, contrast",
    "mixing": "with these and CutMix, MixUp, CutOut",
}  # fmt: skip
_STYLE = """
body { max-width: 78em; } p { max-width: 60em; } td:first-child { min-width: 9em; }
"""
_COLUMNS = {
    "real": "real", "synthetic": "synthetic", "swd": "sliced Wasserstein", "lite0_kid": "lite0-KID",
    "lite0_precision": "lite0-precision", "lite0_recall": "lite0-recall", "lite0_variety": "lite0-variety",
    "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "clustered_lpips": "clustered LPIPS",
}  # fmt: skip


def write(
    path: Path,
    found: Mapping[str, Any],
    sheets: Mapping[str, Mapping[str, Any]],
    alarms: Sequence[Mapping[str, Pixels]],
) -> None:
    """Write the result of `evaluate` as one HTML file.

    With it go the image rows and nearest pairs of each dataset, and the false alarms of its networks for each shots.
    """
    names = list(found["datasets"])
    title = f"Does {names[0]} help?" if len(names) == 1 else f"Which helps: {', '.join(names)}?"
    parts = [
        *markup.head(title, _STYLE),
        *(line for of_shots in found["downstream"] for line in _verdicts(of_shots, found)),
        *(_gains_by_shots(found["downstream"]) if len(found["downstream"]) > 1 else ()),
        *(
            line
            for of_shots, strips in zip(found["downstream"], alarms, strict=True)
            for line in (*_downstream(of_shots), *_false_alarms(of_shots, strips))
        ),
        *_fidelity(found["datasets"]),
    ]
    for name, of in found["datasets"].items():
        parts += _memorisation(name, of["memorisation"], sheets[name]["pairs"])
        parts += _masks(name, of["mask_agreement"])
        parts.append(f"<h2>Windows around defects: {escape(name)}</h2>")
        parts.append('<p class="small">Below each row, the same with the masks outlined.</p>')
        for row, strip in sheets[name]["windows"]:
            alt = f"{row}: windows around defects; below, with their masks outlined"
            parts.append(f"<figure><figcaption>{escape(row)}</figcaption>{_image(strip, alt)}</figure>")
    files.write(path, "\n".join([*parts, *_inputs(found), "</html>"]) + "\n")


def _shots_label(shots: int | None) -> str:
    return "all real defects" if shots is None else f"{shots} real defect{'s' * (shots > 1)} of each category"


def _verdicts(of_shots: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = [f"<h2>With {_shots_label(of_shots['shots'])}</h2>"]
    for name, answer in of_shots["datasets"].items():
        for task, of_task in answer["tasks"].items():
            kind = of_task["verdict"].split()[0]  # the class of its style
            verdict = escape(f"{name}, {task}: {of_task['verdict']}")
            lines.append(f'<p class="verdict {kind}">{verdict}</p>')
            if "gain" not in of_task:
                continue
            interval = "one seed, no interval"
            if of_task["low"] is not None:
                interval = f"95% interval {of_task['low']:+.3f} to {of_task['high']:+.3f}, {of_task['seeds']} seeds"
            details = (
                f"{NAMES[of_task['decided_by']]} {of_task['gain']:+.3f} ({interval}) against "
                f"{_SETS[of_shots['augmentation']]}, without synthetic images, which cross-validation chose; "
                f"{answer['share']:.0%} of the defects in training were synthetic."
            )
            lines.append(f'<p class="small">{escape(details)}</p>')
        lines += [f"<p>{escape(reason)}</p>" for reason in (*answer["reasons"], *filter(None, [answer.get("note")]))]
        lines += _by_category(name, answer, of_shots, found["counts"]["real_test"])
    tested = sum(count for name, count in found["counts"]["real_test"].items() if name != NORMAL)
    note = f"The interval covers training and the choice of shots; the {tested} test defects are always the same."
    return [*lines, f'<p class="small">{note}</p>']


def _by_category(
    name: str, answer: Mapping[str, Any], of_shots: Mapping[str, Any], tested: Mapping[str, int]
) -> list[str]:
    """A table of each category without the dataset and with it."""
    if not answer["categories"]:
        return []
    keys = ("recall", "ap")
    rows = []
    for category, gains in answer["categories"].items():
        row = [category, str(tested.get(category, 0))]
        for key in keys:
            if key not in gains:
                row += ["not tested"] * 3
                continue
            for own in (of_shots["augmentation"], name):
                row.append(f"{of_shots['sets'][own]['categories'][category][key]['mean']:.3f}")
            row.append(f"{gains[key]['gain']:+.3f}{_plus_minus(gains[key])}")
        rows.append(row)
    columns = [f"{NAMES[key]} {what}" for key in keys for what in ("without", "with", "gain")]
    return [f"<h3>{escape(name)}, by category</h3>", markup.table(["category", "test images", *columns], rows)]


def _gains_by_shots(downstream: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the gain of each dataset by number of shots."""
    rows = []
    for name in downstream[0]["datasets"]:
        for task in downstream[0]["datasets"][name]["tasks"]:
            cells = [of_shots["datasets"][name]["tasks"][task] for of_shots in downstream]
            shown = ["not used" if "gain" not in of else f"{of['gain']:+.3f}{_plus_minus(of)}" for of in cells]
            rows.append([f"{name}, {task}", *shown])
    head = ["gain", *("all" if of_shots["shots"] is None else str(of_shots["shots"]) for of_shots in downstream)]
    return ["<h2>Gain against the number of real defects</h2>", markup.table(head, rows)]


def _plus_minus(of_task: Mapping[str, Any]) -> str:
    return "" if of_task["low"] is None else f" ± {of_task['gain'] - of_task['low']:.3f}"


def _label(name: str, datasets: Mapping[str, Any]) -> str:
    return _SETS.get(name) or (
        f"with {name}" if name in datasets else f"{name.removesuffix(' alone')} only, no real defects"
    )


def _downstream(of_shots: Mapping[str, Any]) -> list[str]:
    sets, datasets = of_shots["sets"], of_shots["datasets"]
    names = list(next(iter(sets.values()))["scores"])

    def cells(scores: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
        return [f"{scores[key]['mean']:.3f} ± {scores[key]['spread']:.3f}" for key in keys]

    rows = [[_label(name, datasets), *cells(of["scores"], names)] for name, of in sets.items()]
    parts = [
        f"<h2>Tested on held-out real images, trained with {_shots_label(of_shots['shots'])}</h2>",
        markup.table(["trained on", *(NAMES[name] for name in names)], rows),
        f'<p class="small">The training sets with synthetic images: {escape(_SETS[of_shots["augmentation"]])}.</p>',
        _curves({_label(name, datasets): of["curve"] for name, of in sets.items()}),
    ]
    for category, of_category in next(iter(sets.values()))["categories"].items():
        keys = list(of_category)
        rows = [[_label(name, datasets), *cells(of["categories"][category], keys)] for name, of in sets.items()]
        parts.append(markup.table([category, *(NAMES[key] for key in keys)], rows))
    return parts


def _false_alarms(of_shots: Mapping[str, Any], strips: Mapping[str, Pixels]) -> list[str]:
    """What looks most like defects in flawless test images."""
    parts = [
        "<h3>False alarms</h3>",
        '<p class="small">The flawless test images that look most like defects to the networks, with the place marked. '
        "If it is a defect, label it; if it is a part of the product, add normals that show it, or crop it.</p>",
    ]
    for name, strip in strips.items():
        caption = f"{name if name in of_shots['datasets'] else 'without synthetic images'}: " + ", ".join(
            Path(image).name for image in of_shots["sets"][name]["alarms"]
        )
        image = _image(strip, "windows of flawless images; below, with the places of false alarms outlined")
        parts.append(f"<figure><figcaption>{escape(printable(caption))}</figcaption>{image}</figure>")
    return parts


def _fidelity(datasets: Mapping[str, Any]) -> list[str]:
    rows, names = [], list[str]()
    for name, of in datasets.items():
        for category, figures in of["fidelity"].items():
            names = names or [key for key in figures if key in _COLUMNS]
            row = [f"{name}, {category}"]
            for key in names:
                shown = f"{figures.get(key, float('nan')):.3g}"
                if key == "lite0_kid":
                    shown += f" ± {figures['lite0_kid_spread']:.2g}"
                beside = [f"{figures[key + end]:.3g}" for end in ("_floor", "_cutouts") if key + end in figures]
                row.append(f"{shown} ({', '.join(beside)})" if beside else shown)
            rows.append(row)
    if not rows:
        return []
    note = (
        "In parentheses: the floor, measured between two halves of the real defects, and the yardstick, measured with "
        "cut-outs of the same real defects. lite0 figures compare features of EfficientNet-Lite0: KID as in the "
        "literature but with another network; precision and recall as the share of each set that lies in the manifold "
        "of the other; variety as the perceptual distance within the clusters around the real defects (0 for copies). "
        "The sliced Wasserstein distance (× 1000) needs no network. FID and LPIPS need their own: --features "
        "inception=FILE, --features lpips=FILE."
    )
    table = markup.table(["category", *(_COLUMNS[name] for name in names)], rows)
    return ["<h2>Fidelity: resemblance to real defects</h2>", table, f'<p class="small">{note}</p>']


def _memorisation(name: str, found: Mapping[str, Any], pairs: Sequence[Pixels]) -> list[str]:
    figures = []
    for strip, pair in zip(pairs, found["worst"], strict=True):
        synthetic, real = (printable(Path(pair[key]).name) for key in ("synthetic", "real"))
        alt = f"The synthetic {synthetic} beside the real {real}, similarity {pair['similarity']:.2f}; below, outlined"
        caption = f"{pair['similarity']:.2f}: {synthetic}, {real}"
        figures.append(f"<figure>{_image(strip, alt)}<figcaption>{escape(caption)}</figcaption></figure>")
    return [
        f"<h2>Copies: {escape(name)}</h2>",
        f"<p>{found['near_copies']} of {found['of']} synthetic defects are near-copies of a real one, with a "
        f"similarity above {found['threshold']:.2f} (of 1). Among the real defects themselves, "
        f"{100 * found['share_among_real']:.0f}% have a near-copy. The nearest pairs, synthetic on the left:</p>",
        *figures,
    ]


def _masks(name: str, found: Mapping[str, float] | None) -> list[str]:
    head = f"<h2>Masks: {escape(name)}</h2>"
    if found is None:
        return [head, "<p>Not compared: the source images of the samples were not found.</p>"]
    return [
        head,
        f"<p>IoU of each mask with the pixels that differ from the source image: median {found['median_iou']:.2f} over "
        f"{found['compared']:.0f} samples; below 0.5 for {100 * found['below_a_half']:.0f}%.</p>",
    ]


def _inputs(found: Mapping[str, Any]) -> list[str]:
    counts = {**found["counts"], **{name: of["counts"] for name, of in found["datasets"].items()}}
    rows = [
        [name.replace("_", " "), ", ".join(f"{category} {count}" for category, count in of.items())]
        for name, of in counts.items()
        if isinstance(of, Mapping)
    ]
    notes = []
    if counts["left_out_as_near_duplicates"]:
        notes.append(
            f"{counts['left_out_as_near_duplicates']} images that are near-duplicates of a test image, or show its "
            "defect, were left out of the training."
        )
    if counts["left_out_of_test"]:
        notes.append(
            f"{counts['left_out_of_test']} test images that show a defect that a dataset was made from were left out."
        )
    for name, of in found["datasets"].items():
        if not of["traceable"]:
            notes.append(f"{name} does not record its source images, so it was not fully checked for test-set leakage.")
        elif of["made_by_model"] and not of["trained_on_known"]:
            notes.append(
                f"{name} does not record its model's training images, so it was not fully checked for test-set leakage."
            )
    extent = ", ".join(f"{name} {value}" for name, value in found["extent"].items())
    how = (
        f"Networks {found['kind']}, {extent}, seed {found['seed']}, {found['device']}, defectgen {found['defectgen']}."
    )
    return [
        "<h2>What was compared</h2>",
        markup.table(["", "images"], rows),
        f'<p class="small">{escape(" ".join([*notes, how]))}</p>',
    ]


def _image(pixels: Pixels, alt: str) -> str:
    return markup.image(encode_jpeg(pixels), alt)


def _curves(curves: Mapping[str, Sequence[float]], width: int = 680, height: int = 290) -> str:
    """An SVG plot of precision over recall of the pixels, with one line for each training set."""
    left, right, bottom = 60, 320, height - 40
    lines = []
    for quarter in (0.25, 0.5, 0.75):
        x, y = left + quarter * (width - left - right), 10 + quarter * (bottom - 10)
        lines.append(
            f'<path d="M{x:.1f} 10V{bottom}M{left} {y:.1f}H{width - right}" stroke="#999" stroke-opacity=".3"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{quarter:g}</text>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{1 - quarter:g}</text>')
    for number, (name, values) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        points = " ".join(
            f"{left + i * (width - left - right) / (len(values) - 1):.1f},{10 + (1 - value) * (bottom - 10):.1f}"
            for i, value in enumerate(values)
        )
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{points}"/>')
        x, y = width - right + 12, 20 + 18 * number
        lines.append(f'<path d="M{x} {y}h18" stroke="{color}" stroke-width="3"/>')
        lines.append(f'<text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
    names = ("recall: share of defect pixels found", "0", "1"), ("precision of pixels", "0", "1")
    frame = markup.axes(left, width - right, bottom, x=names[0], y=names[1])
    label = "Precision over recall of the pixels, a line for each training set"
    return markup.plot(width, height, label, [frame, *lines])
