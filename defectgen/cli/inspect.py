"""`defectgen inspect`: finds defects in images, and writes masks, overlays and a report."""

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

_SHOWN = 40  # maximum number of images listed on the terminal


def inspect(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images to inspect, or one image.")],
    model: Annotated[
        str | None,
        option("--model", metavar="NAME", help="Model that reconstructs images without defects  [default: the newest]"),
    ] = None,
    weights: options.Weights = None,
    reference: Annotated[
        Path | None,
        option("--reference", metavar="DIR", help="Golden images with the same file names, instead of a model."),
    ] = None,
    threshold: Annotated[
        float | None,
        option("--threshold", min=0, max=2, help="Score above which an image is defective  [default: the model's]"),
    ] = None,
    calibrate: Annotated[
        Path | None,
        option(
            "--calibrate",
            metavar="DIR",
            help="Defect-free images to set the threshold by, which is saved in the model.",
        ),
    ] = None,
    share: Annotated[
        float,
        option("--share", min=0.5, max=1, help="Share of the defect-free images that pass the calibrated threshold."),
    ] = 0.99,
    border: Annotated[
        int | None,
        option("--border", min=0, help="Pixels to ignore along the edges  [default: as calibrated, or 0]"),
    ] = None,
    fail_on_defect: Annotated[bool, option("--fail-on-defect", help="Exit with code 9 if a defect is found.")] = False,
    watch: Annotated[bool, option("--watch", help="Continue with new images as they arrive, until stopped.")] = False,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Output folder of the report.")] = Path("report"),
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Find defects in unlabeled images.

    Compares each image with its defect-free reconstruction by a model, or with a golden image.
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
        console.note(f"threshold {job.threshold:.4f}, calibrated: {share:.1%} of the images in {calibrate} pass")
    elif not job.calibrated:
        console.note(
            f"threshold {job.threshold}, not calibrated; calibrate it on defect-free images with --calibrate DIR"
        )
    noted: list[dict[str, Any]] = []
    start = time.monotonic()
    with console.progress("inspecting") as progress:
        for inspected in job:
            if as_json:
                console.result(inspected.row, "", kind="image")
                continue
            if inspected.row.get("defective") or "error" in inspected.row:
                noted.append(inspected.row)
            progress(job.inspected, len(job), f"{job.defective} defective", job.totals)
    seconds = time.monotonic() - start
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
    """One line for each image that is defective or unreadable, below a header."""
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
