"""What `synthesize` and `compose` share: the options of a dataset, and writing it."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from defectgen.cli.console import Console
from defectgen.cli.options import Switches, option
from defectgen.errors import ExitCode, UserError

if TYPE_CHECKING:
    from defectgen.dataset import Dataset, Synthesized
    from defectgen.folders import Catalog
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


def plan(normals: "Catalog", num: int, out: Path, layout: Format) -> dict[str, Any]:
    """What `--dry-run` tells of a dataset."""
    pixels = [sample.height * sample.width * sample.channels * sample.depth // 8 for sample in normals.samples]
    return {
        "num": num,
        "normals": len(pixels),
        "skipped": len(normals.skipped),
        "format": layout.value,
        "out": str(out),
        "disk_bytes_at_most": round(num * sum(pixels) / len(pixels)),
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

        summary = target.write(samples, normals=samples.normals(), workers=workers, on_sample=on_sample)

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
        "skipped": skipped,
        "sheet": str(summary.sheet),
    }
    console.result(
        values,
        f"{target.out}: {summary.written} samples written, {summary.kept} kept, {samples.redrawn} drawn again, "
        f"{failed} given up; look at {summary.sheet}",
    )
    return ExitCode.SKIPPED if skipped else ExitCode.OK
