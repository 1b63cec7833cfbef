"""The two parts of `all.sh` that are no commands of defectgen: it splits real images, and makes tables of results.

    python examples/benchmarks/results.py split DATA FOLDER
    python examples/benchmarks/results.py page FOLDER

`split` links three fifths of the images of DATA by name (`normals`, `defects`, `masks`), of each category, into
FOLDER/dev, the others into FOLDER/test, and the first five defects of each category of `dev` into FOLDER/five.
"""

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from defectgen.folders import NORMAL, ProductFolders, SourceImage, read_catalog
from defectgen.training.view import LOG_EVERY

LEARNED, ALL, SHOTS = 3, 5, 5
_AUGMENTED = "real images, augmented"


def split(data: Path, folder: Path) -> None:
    """Link the images of `data`, unless that has been done; a part that was interrupted is finished."""
    source = ProductFolders(product="product", normals=data / "normals", defects=data / "defects", masks=data / "masks")
    by_category: dict[str, list[SourceImage]] = {}
    for image in sorted(read_catalog([source]).images, key=lambda each: each.path.name):
        by_category.setdefault(image.category, []).append(image)
    for images in by_category.values():
        dev = [image for i, image in enumerate(images) if i % ALL < LEARNED]
        for image in images:
            place(image, folder / ("dev" if image in dev else "test"))
        for image in dev[:SHOTS] if images[0].category != NORMAL else []:
            place(image, folder / "five")


def place(image: SourceImage, part: Path) -> None:
    """Link an image, and its mask, into folders as `train` takes them."""
    folder = Path("normals") if image.category == NORMAL else Path("defects", image.category)
    link(image.path, part / folder / image.path.name)
    if isinstance(image.mask, Path):
        link(image.mask, part / "masks" / image.category / f"{image.path.stem}{image.mask.suffix}")


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        target.symlink_to(source.absolute())


def page(folder: Path) -> list[str]:
    """The lines of the tables of a folder that `all.sh` has filled."""
    lines = [f"## {folder.name}", ""]
    for suffix, title in (("", ""), ("-one", "All defects as one category, since ISU-GAN's have one:")):
        quality, report = folder / f"quality{suffix}.json", folder / f"report{suffix}/report.json"
        if not quality.exists():
            continue
        lines += [title, ""] if title else []
        lines += [*looks(folder, json.loads(quality.read_text(encoding="utf-8"))), ""]
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
            for of_shots in found["downstream"]:
                lines += [*helps(of_shots, found["extent"]["seeds"]), ""]
    for file in sorted(folder.glob("*.nothing")):
        how = training(folder / "runs" / file.stem) or "a few steps"
        lines += [f"`{file.stem}` ({how}) made no visible defect.", ""]
    return lines


def looks(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What the datasets look like."""
    names = " | ".join(f"KID {name}" for name in rows[0]["kid"])
    floor = [number(rows[0]["floor"].get(name), 1) for name in rows[0]["kid"]]
    lines = [
        f"| | training | {names} | in units of `compose` | told | IoU of masks | variety | near-copies | images/s |",
        "|---" * (8 + len(rows[0]["kid"])) + "|",
        f"| *two halves of the real ones* | | {' | '.join(floor)} | | | | | | |",
    ]
    for row in rows:
        kids = " | ".join(number(each, 1) for each in row["kid"].values())
        rest = [number(row[key], 2) for key in ("ratio", "told", "iou", "variety")]
        cells = [training(folder / "runs" / row["dataset"]), kids, *rest, f"{row['copies']:.0%}"]
        lines.append(f"| `{row['dataset']}` | {' | '.join(cells)} | {speed(folder, row['dataset'])} |")
    return lines


def helps(of_shots: dict[str, Any], seeds: int) -> list[str]:
    """Scores with the real defects of `of_shots`, and the gains of each dataset with their intervals."""
    shots = f"{of_shots['shots']} real defects of each category" if of_shots["shots"] else "All real defects"
    lines = [
        f"{shots}, {seeds} seeds:",
        "",
        "| trained on | share | balanced accuracy | gain | mean average precision | gain |",
        "|---" * 6 + "|",
        f"| {_AUGMENTED} | | {scores(of_shots, of_shots['augmentation'], 'balanced_accuracy')} | | "
        f"{scores(of_shots, of_shots['augmentation'], 'mean_ap')} | |",
    ]
    for name, answer in of_shots["datasets"].items():
        cells = [f"{answer['share']:.2f}"]
        for task, measure in (("classification", "balanced_accuracy"), ("segmentation", "mean_ap")):
            cells += [scores(of_shots, name, measure), gain(answer["tasks"][task])]
        lines.append(f"| and `{name}` | {' | '.join(cells)} |")
    return lines


def scores(of_shots: dict[str, Any], name: str, measure: str) -> str:
    """A mean score and its deviation; nothing for a dataset that no network was trained on."""
    if name not in of_shots["sets"]:
        return ""
    found = of_shots["sets"][name]["scores"][measure]
    return f"{found['mean']:.3f} ± {found['spread']:.3f}"


def gain(task: dict[str, Any]) -> str:
    """The verdict on a task, and its interval where there is one."""
    if task.get("low") is None:
        return str(task["verdict"])
    return f"{task['verdict']}, {task['low']:+.3f} to {task['high']:+.3f}"


def training(run: Path) -> str:
    """Steps and minutes of a training; nothing for `compose`, and before the first are logged."""
    steps, _, minutes = taken(run)
    return f"{steps} steps, {minutes:.0f} min" if steps else ""


def taken(run: Path) -> tuple[int, float, float]:
    """The steps of a training, but for those that a time limit left out, their median seconds, and all minutes."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return 0, 0.0, 0.0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows.insert(0, {"step": 0, "seconds": 0.0})
    pairs = [(b["step"] - a["step"], b["seconds"] - a["seconds"]) for a, b in pairwise(rows)]
    own = [(steps, seconds) for steps, seconds in pairs if steps <= LOG_EVERY]
    each = median(spent / n for n, spent in own) if own else 0.0
    return sum(n for n, _ in own), each, rows[-1]["seconds"] / 60


def speed(folder: Path, name: str) -> str:
    """Images per second, with loading and encoding, if the dataset was made at one go."""
    seconds, manifest = folder / f"{name}.seconds", folder / name / "manifest.jsonl"
    if not seconds.exists():
        return ""
    return f"{len(manifest.read_text(encoding='utf-8').splitlines()) / max(int(seconds.read_text()), 1):.1f}"


def number(value: float | None, digits: int) -> str:
    """What was measured, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("split")
    first.add_argument("data", type=Path)
    first.add_argument("folder", type=Path)
    second = commands.add_parser("page")
    second.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "split":
        split(options.data, options.folder)
    else:
        print("\n".join(page(options.folder)))


if __name__ == "__main__":
    main()
