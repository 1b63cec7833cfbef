"""Shared by `synthesize`, `transfer` and `compose`: the options of a dataset, and writing it."""

import math
import re
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from defectgen.cli import completion
from defectgen.cli.console import Console, table
from defectgen.cli.options import Switches, option
from defectgen.errors import BadInputError, ExitCode, UsageError
from defectgen.text import duration, speed

if TYPE_CHECKING:
    from defectgen.dataset import LayoutOptions, Sample
    from defectgen.pipelines.synthesize import Folder, SynthesisJob
    from defectgen.synthesis.pasted import Placement, Region
    from defectgen.synthesis.stream import AnyStream


class Format(str, Enum):
    """The values of `defectgen.dataset.Layout`. Importing that needs NumPy, which would slow down --help."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


Num = Annotated[int, option("--num", "-n", min=1, help="Number of samples to generate.")]
Out = Annotated[Path, option("--out", "-o", metavar="DIR", help="Output folder of the dataset.")]
Layout = Annotated[Format, option("--format", help="Layout of the dataset.")]
Val = Annotated[
    float | None,
    option(
        "--val",
        min=0.0,
        max=0.5,
        help="Share for validation, of other normals and real defects than those for training: yolo, coco; for mvtec, "
        "of the normals for testing  [default: 0.2]",
    ),
]
NormalsShare = Annotated[
    float | None,
    option(
        "--normals-share",
        min=0.0,
        metavar="SHARE",
        help="Normals to add as images without defects, per sample: yolo, coco  [default: 0.1 for yolo, 0 for coco]",
    ),
]


class Segmentation(str, Enum):
    """As `defectgen.dataset.coco.Segmentation`."""

    AUTO = "auto"
    POLYGON = "polygon"
    RLE = "rle"


class Instances(str, Enum):
    """As `defectgen.dataset.instances.Instances`."""

    DEFECTS = "defects"
    PIECES = "pieces"


Segmentations = Annotated[
    Segmentation | None,
    option(
        "--segmentation",
        help="Masks in coco: polygons, with cuts to holes; run lengths; or polygons, and run lengths for those with "
        "holes  [default: auto]",
    ),
]
Annotations = Annotated[
    Instances | None,
    option("--instances", help="Annotate whole defects, or each piece: yolo, coco  [default: defects]"),
]
Product = Annotated[
    str | None, option("--product", metavar="NAME", help="Name of the product: mvtec  [default: the normals' folder]")
]
_OF = {
    "val": ("yolo", "coco", "mvtec"), "normals_share": ("yolo", "coco"), "segmentation": ("coco",),
    "instances": ("yolo", "coco"), "product": ("mvtec",),
}  # fmt: skip
Model = Annotated[
    str | None,
    option(
        "--model",
        metavar="NAME",
        help="Model to use  [default: the newest with the categories]",
        autocompletion=completion.models,
    ),
]
_BOX = re.compile(r"\d+(,\d+){3}")
_ALL_LEARNED = 5  # of `places`: position in two directions, depth, brightness, texture
PerImage = Annotated[str, option("--per-image", metavar="RANGE", help="Defects per image: 2, or 1:3 for one to three.")]
Scale = Annotated[
    str | None,
    option(
        "--scale",
        metavar="RANGE",
        help="Scale of the defects: 1, or 0.5:2  [default: as real ones vary; 0.8:1.25 for generated ones]",
    ),
]
Rotation = Annotated[
    str | None,
    option(
        "--rotation",
        metavar="RANGE",
        help="Rotation of the defects in degrees: 0, or -10:10  [default: as real ones vary; any for generated ones]",
    ),
]


class Places(str, Enum):
    """As `defectgen.synthesis.pasted.Place`."""

    LIKE_REAL = "like-real"
    ANYWHERE = "anywhere"


Place = Annotated[
    Places,
    option("--place", help="Where defects lie: where real ones of the category do, by edge and ground, or anywhere."),
]
Vary = Annotated[
    float,
    option(
        "--vary",
        metavar="AMOUNT",
        min=0.0,
        max=2.0,
        help="How much real defects are bent, stretched and changed in contrast: 0 not at all, 1 as real ones differ.",
    ),
]
Where = Annotated[
    str | None,
    option(
        "--region",
        metavar="WHERE",
        help="Where to place defects: x,y,width,height in pixels; a mask image; or 'object', to leave out a plain "
        "background  [default: as --place says]",
    ),
]
Style = Annotated[
    str,
    option(
        "--style",
        metavar="own|sampled|DEFECTS",
        help="For models that use references: the defect's own style, a random one, or that of other images.",
    ),
]
GateFolder = Annotated[
    Path | None,
    option(
        "--gate",
        metavar="DEFECTS",
        help="Regenerate samples that do not resemble these defects, nearly copy one, or have a wrong mask.",
    ),
]

Reject = Annotated[
    Path | None,
    option(
        "--reject",
        metavar="FILE",
        help="With --resume: replace the samples that this file names, one a line, as 'defectgen review' writes it.",
    ),
]


def run(
    console: Console,
    job: "SynthesisJob",
    switches: Switches,
    *,
    title: str,
    maker: str,
    out: Path,
    layout: Format,
    options: "LayoutOptions",
    resume: bool,
    overwrite: bool,
    reject: Path | None,
    wait: bool,
    dry_run: bool,
    verbose: bool,
) -> ExitCode:
    """Generate and write the samples of a job, with progress, and print a summary.

    Args:
        title: the title of the progress bar.
        maker: the key of the summary for the source of the defects.
    """
    from defectgen.dataset import Layout as DatasetLayout
    from defectgen.pipelines.synthesize import DatasetRequest, write

    console.skipped(job.skipped)
    console.warnings(job.warnings)
    if dry_run or verbose:
        plan = {**job.plan, "format": layout.value, "out": str(out)}
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.SKIPPED if job.skipped else ExitCode.OK
        console.note(f"configuration:\n{table(plan)}")
    request = DatasetRequest(
        out=out, layout=DatasetLayout(layout.value), options=options, command=switches.command, resume=resume,
        overwrite=overwrite, wait=wait, reject=reject,
    )  # fmt: skip
    with console.progress(title) as report:
        stream: AnyStream | None = None
        written, began = 0, 0.0

        def on_start(samples: "AnyStream") -> None:
            nonlocal stream, began
            stream, began = samples, time.monotonic()
            onto = f" onto {job.onto}" if job.onto else ""
            console.note(f"{len(samples)} samples of {', '.join(job.categories)} from {job.maker}{onto}, into {out}")
            for category, learned in samples.metadata.get("places", {}).items():
                if learned["inside"] > 0 and len(learned["learned"]) < _ALL_LEARNED:
                    what = ", ".join(learned["learned"]) or "off the edges"
                    ones = "1 real one" if learned["inside"] == 1 else f"{learned['inside']} real ones"
                    console.note(
                        f"places of {category}, learned from {ones}: {what}; six or more would teach their ground, too"
                    )

        def on_sample(_sample: "Sample") -> None:
            nonlocal written
            written += 1
            assert stream is not None
            rate = written / max(time.monotonic() - began, 1e-9)
            left = (len(stream) - written) / rate
            detail = f"{speed(rate, 'samples')}, {duration(left)} left, {stream.redrawn} regenerated"
            values = {"samples_per_second": round(rate, 3), "seconds_left": round(left, 1), "redrawn": stream.redrawn}
            report(written, len(stream), detail, values)

        result = write(job, request, on_start, on_sample)
    for warning in result.warnings:
        console.warn(warning)
    values = {
        "out": str(out),
        maker: job.maker,
        "written": result.written,
        "kept": result.kept,
        **({} if reject is None else {"rejected": result.rejected}),
        "redrawn": result.redrawn,
        "failed": result.failed,
        **({"refused": result.refused} if result.refused else {}),
        "skipped": len(job.skipped),
        "sheet": str(result.sheet),
    }
    console.result(
        values,
        f"{out}: {result.written} samples written, {result.kept} kept, {result.redrawn} regenerated, "
        f"{result.failed} failed{'' if reject is None else f', {result.rejected} rejected'}; see {result.sheet}",
    )
    return ExitCode.SKIPPED if job.skipped else ExitCode.OK


def options(layout: Format, **given: Any) -> "LayoutOptions":
    """The choices for a layout. Those that are None are not given.

    Raises:
        UsageError: one does not apply to the layout, or is no name.
    """
    from defectgen.dataset import LayoutOptions

    chosen = {
        key: value.value if isinstance(value, Enum) else value for key, value in given.items() if value is not None
    }
    for key in chosen:
        if layout.value not in _OF[key]:
            name = f"--{key.replace('_', '-')}"
            raise UsageError(f"{name}: has no effect with --format {layout.value}; it is for {', '.join(_OF[key])}")
    if not chosen.get("product", "x").strip():
        raise UsageError("--product: the name is empty")
    return LayoutOptions(**chosen)


def folder(text: str) -> "Folder":
    """Parse `PRODUCT=DIR` or `DIR`, both of which may contain `=`. The product is None if not given."""
    splits = [(text[:i], Path(text[i + 1 :])) for i, letter in enumerate(text) if letter == "="]
    if not splits or Path(text).is_dir():
        return None, Path(text)
    return next((split for split in splits if split[1].is_dir()), splits[0])


def style(text: str) -> Literal["own", "sampled"] | Path:
    """Parse a style: `own`, `sampled`, or a folder."""
    return "own" if text == "own" else "sampled" if text == "sampled" else Path(text)


def is_region(text: str) -> bool:
    """Whether a text has one of the forms of `region`."""
    return text == "object" or bool(_BOX.fullmatch(text)) or Path(text).is_file()


def region(text: str) -> "Region":
    """Parse a region to place defects in: `x,y,width,height`, a mask image, or `object`.

    Raises:
        UsageError: the text has another form, or the box is empty.
        BadInputError: the mask is unreadable or empty.
    """
    from defectgen.imaging.images import read_mask
    from defectgen.imaging.windows import Box
    from defectgen.synthesis.pasted import Region

    if text == "object":
        return Region(name=text)
    if _BOX.fullmatch(text):
        box = Box(*map(int, text.split(",")))
        if box.width == 0 or box.height == 0:
            raise UsageError(f"--region {text}: the box is empty; give x,y,width,height in pixels")
        return Region(box=box, name=text)
    if not Path(text).is_file():
        raise UsageError(f"--region {text}: no such file; give x,y,width,height, a mask image, or 'object'")
    mask = read_mask(Path(text))
    if not mask.any():
        raise BadInputError(f"--region {text}: the mask is empty; write 255 where defects may be placed")
    return Region(mask=mask, name=text)


def placement(
    scale: str | None,
    rotation: str | None,
    per_image: str,
    where: str | None,
    crop: str = "1",
    **settings: Any,
) -> "Placement":
    """The placement of patches, from the texts of the options. `settings` are further fields of `Placement`.

    Raises:
        UsageError: a text has the wrong form or is out of range.
    """
    from defectgen.synthesis.pasted import Placement

    counts = number_range("--per-image", per_image, low=1)
    if any(count % 1 for count in counts):
        raise UsageError(f"--per-image {per_image}: give whole numbers, such as 2 or 1:3")
    return Placement(
        scale=None if scale is None else number_range("--scale", scale, low=0.01),
        rotation=None if rotation is None else number_range("--rotation", rotation),
        crop=number_range("--crop", crop, low=0.01, high=1),
        per_image=(round(counts[0]), round(counts[1])),
        region=None if where is None else region(where),
        **settings,
    )


def number_range(name: str, text: str, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """Parse `LOW:HIGH`, or one number for both, with limits `low` and `high`."""
    first, _, last = text.partition(":")
    try:
        values = float(first), float(last or first)
    except ValueError:
        values = math.nan, math.nan
    if not (low <= values[0] <= values[1] <= high and all(map(math.isfinite, values))):
        limits = f" of {low:g} or more" if low > -math.inf else ""
        limits += f", {high:g} at most" if high < math.inf else ""
        raise UsageError(f"{name} {text}: give a number{limits}, or a range LOW:HIGH")
    return values
