"""`defectgen inspect`: line images in; verdicts, masks, overlays and a report out."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from defectgen.cli import options
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import ExitCode

EXAMPLES = """\b
Examples:
  defectgen inspect line/images --model tiles --fail-on-defect
  defectgen inspect line/images --reference golden --calibrate good --watch"""

_SHOWN = 40  # lines on the terminal


def inspect(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images to inspect, or one image.")],
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="A model that repairs images  [default: the newest one]")
    ] = None,
    weights: options.Weights = None,
    reference: Annotated[
        Path | None,
        option("--reference", metavar="DIR", help="Golden images of the same names, instead of a model."),
    ] = None,
    threshold: Annotated[
        float | None,
        option("--threshold", min=0, max=2, help="Score above which an image is defective  [default: the model's]"),
    ] = None,
    calibrate: Annotated[
        Path | None,
        option("--calibrate", metavar="DIR", help="Flawless images, to set the threshold by; a model keeps it."),
    ] = None,
    share: Annotated[
        float, option("--share", min=0.5, max=1, help="Share of the flawless images that pass, when calibrating.")
    ] = 0.99,
    border: Annotated[
        int | None,
        option("--border", min=0, help="Pixels along the edges that are not judged  [default: as calibrated, or 0]"),
    ] = None,
    fail_on_defect: Annotated[bool, option("--fail-on-defect", help="End with code 9 if a defect was found.")] = False,
    watch: Annotated[bool, option("--watch", help="Keep inspecting images as they arrive, until stopped.")] = False,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Where the report goes.")] = Path("report"),
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Find defects on images that nobody has labelled.

    Each image is compared with itself repaired, or with a golden image.
    """
    options.exclusive(resume, overwrite, "report")

    from defectgen.pipelines.inspect import InspectionJob, InspectRequest

    console = Console(as_json=as_json, quiet=quiet)
    job = InspectionJob(
        InspectRequest(
            images=images,
            model=model,
            weights=weights,
            reference=reference,
            threshold=threshold,
            calibrate=calibrate,
            share=share,
            border=border,
            watch=watch,
            out=out,
            device=device,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
        )
    )
    if calibrate is not None:
        console.note(f"threshold {job.threshold:.4f}, which {share:.1%} of the images in {calibrate} stay below")
    elif not job.calibrated:
        console.note(
            f"threshold {job.threshold}, not calibrated; --calibrate DIR finds a better one on flawless images"
        )
    noted: list[dict[str, Any]] = []
    began = time.monotonic()
    with console.progress("inspecting") as progress:
        for inspected in job:
            if as_json:
                console.result(inspected.row, "", kind="image")
                continue
            if inspected.row.get("defective") or "error" in inspected.row:
                noted.append(inspected.row)
            progress(job.inspected, len(job), f"{job.defective} defective", job.totals)
    seconds = time.monotonic() - began
    lines = _table(noted)
    lines += [f"... and {len(noted) - _SHOWN} more, in {out}/report.csv"] if len(noted) > _SHOWN else []
    lines += [
        f"{out}: {job.inspected} images inspected, {job.defective} defective, {job.errors} unreadable, "
        f"{job.inspected / max(seconds, 1e-9):.1f} images/s"
    ]
    values = {
        "out": str(out), "model": job.maker, "threshold": job.threshold, "border": job.border, "kept": job.kept,
    }  # fmt: skip
    console.result({**values, **job.totals}, "\n".join(lines))
    if fail_on_defect and job.defective:
        return ExitCode.DEFECTS_FOUND
    return ExitCode.SKIPPED if job.errors else ExitCode.OK


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each image with defects, or that cannot be read."""
    if not rows:
        return []
    width = max(len("image"), *(len(row["image"]) for row in rows[:_SHOWN]))
    lines = [f"{'image':{width}}   score   defects   pixels"]
    for row in rows[:_SHOWN]:
        if "error" in row:
            lines.append(f"{row['image']:{width}}   unreadable: {row['error']}")
        else:
            lines.append(f"{row['image']:{width}}   {row['score']:.3f}   {len(row['boxes']):7}   {sum(row['areas']):6}")
    return lines
