"""What `synthesize`, `transfer` and `compose` share: the options of a dataset, and writing it."""

import math
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from defectgen.cli.console import Console
from defectgen.cli.options import Switches, option
from defectgen.errors import BadInputError, ExitCode, UsageError, UserError

if TYPE_CHECKING:
    from defectgen.composing import Placement, Region
    from defectgen.dataset import Dataset, Synthesized
    from defectgen.folders import Catalog
    from defectgen.registry import Entry
    from defectgen.samples import Samples


class Format(str, Enum):
    """As `defectgen.dataset.Layout`, which cannot be imported for the help alone: it needs NumPy."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


Num = Annotated[int, option("--num", "-n", min=1, help="How many samples the dataset shall have.")]
Out = Annotated[Path, option("--out", "-o", metavar="DIR", help="Where the dataset goes.")]
Layout = Annotated[Format, option("--format", help="The layout of the dataset.")]
Model = Annotated[str | None, option("--model", metavar="NAME", help="[default: the newest that knows the categories]")]
PerImage = Annotated[
    str, option("--per-image", metavar="RANGE", help="Defects in an image: 2, or 1:3 for one to three.")
]
Scale = Annotated[str, option("--scale", metavar="RANGE", help="Of the defects: 1, or 0.5:2.")]
Rotation = Annotated[str, option("--rotation", metavar="RANGE", help="Of the defects, in degrees: 0, or -10:10.")]
Where = Annotated[
    str | None,
    option(
        "--region",
        metavar="WHERE",
        help="x,y,width,height in pixels; a mask image; or 'object', not its backdrop  [default: anywhere]",
    ),
]


def find_model(model: str | None, categories: Sequence[str], weights: Path | None) -> "Entry":
    """The model of that name, or the newest that knows the categories (or mixtures, unions); its file is whole.

    Raises:
        WeightsError: there is none, or its file is another.
    """
    from defectgen import registry
    from defectgen.samples import mixture

    known = {name for text in categories for name in mixture(text)}
    entry = registry.find(name=model, categories=known, files=registry.find_registry(weights))
    registry.verify(entry)
    return entry


def plan(normals: "Catalog", num: int, out: Path, layout: Format) -> dict[str, Any]:
    """What `--dry-run` tells of a dataset."""
    pixels = [sample.height * sample.width * sample.channels * sample.depth // 8 for sample in normals.samples]
    return {
        "num": num,
        "normals": len(pixels),
        "skipped": len(normals.skipped),
        "format": layout.value,
        "out": str(out),
        **({"disk_bytes_at_most": round(num * sum(pixels) / len(pixels))} if pixels else {}),
    }


def open_folder(switches: Switches, out: Path, layout: Format, *, resume: bool, overwrite: bool) -> "Dataset":
    from defectgen import dataset

    return dataset.open_folder(
        out, layout=dataset.Layout(layout.value), command=switches.command, resume=resume, overwrite=overwrite
    )


def write(
    console: Console,
    samples: "Samples[Any, Any]",
    target: "Dataset",
    *,
    title: str,
    workers: int,
    skipped: int,
    values: dict[str, Any],
    none_made: UserError,
) -> ExitCode:
    """Write the samples, with progress and a summary that begins with `values`.

    Raises:
        UserError: `none_made`, if every sample was given up.
    """
    with console.progress(title) as report:
        written = 0

        def on_sample(_sample: "Synthesized") -> None:
            nonlocal written
            written += 1
            report(written, len(samples), f"{samples.redrawn} drawn again", {"redrawn": samples.redrawn})

        summary = target.write(
            samples, normals=samples.normals(), facts=samples.facts, workers=workers, on_sample=on_sample
        )

    failed = len(samples.failed)
    if failed and failed == len(samples):
        raise none_made
    values = {
        "out": str(target.out),
        **values,
        "written": summary.written,
        "kept": summary.kept,
        "redrawn": samples.redrawn,
        "failed": failed,
        **({"refused": dict(samples.refused)} if samples.refused else {}),
        "skipped": skipped,
        "sheet": str(summary.sheet),
    }
    console.result(
        values,
        f"{target.out}: {summary.written} samples written, {summary.kept} kept, {samples.redrawn} drawn again, "
        f"{failed} given up; look at {summary.sheet}",
    )
    return ExitCode.SKIPPED if skipped else ExitCode.OK


def region(text: str) -> "Region":
    """Where defects may lie: `x,y,width,height`, a mask image, or `object`."""
    from defectgen.composing import Region
    from defectgen.images import read_mask
    from defectgen.windows import Box

    if text == "object":
        return Region(name=text)
    if re.fullmatch(r"\d+(,\d+){3}", text):
        box = Box(*map(int, text.split(",")))
        if box.width == 0 or box.height == 0:
            raise UsageError(f"--region {text}: is empty; give x,y,width,height in pixels")
        return Region(box=box, name=text)
    if not Path(text).is_file():
        raise UsageError(f"--region {text}: is no file; give x,y,width,height, a mask image, or 'object'")
    mask = read_mask(Path(text))
    if not mask.any():
        raise BadInputError(f"--region {text}: marks nothing; write 255 where defects may lie")
    return Region(mask=mask, name=text)


def placement(
    scale: str, rotation: str, per_image: str, where: str | None, crop: str = "1", **settings: Any
) -> "Placement":
    """How contents are laid on, of the options' texts; `settings` are the rest of a `Placement`."""
    from defectgen.composing import Placement

    counts = _range("--per-image", per_image, low=1)
    if any(count % 1 for count in counts):
        raise UsageError(f"--per-image {per_image}: give whole numbers, as 2 or 1:3")
    return Placement(
        scale=_range("--scale", scale, low=0.01),
        rotation=_range("--rotation", rotation),
        crop=_range("--crop", crop, low=0.01, high=1),
        per_image=(round(counts[0]), round(counts[1])),
        region=None if where is None else region(where),
        **settings,
    )


def _range(name: str, text: str, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """`LOW:HIGH`, or one number for both."""
    first, _, last = text.partition(":")
    try:
        values = float(first), float(last or first)
    except ValueError:
        values = math.nan, math.nan
    if not (low <= values[0] <= values[1] <= high and all(map(math.isfinite, values))):
        least = f" of {low:g} or more" if low > -math.inf else ""
        least += f", {high:g} at most" if high < math.inf else ""
        raise UsageError(f"{name} {text}: give a number{least}, or a range LOW:HIGH")
    return values
