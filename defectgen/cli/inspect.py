"""`defectgen inspect`: finds defects in images, and writes masks, overlays and a report."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectgen import ranks
from defectgen.cli import completion, options
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import ExitCode
from defectgen.text import printable

if TYPE_CHECKING:
    from defectgen.pipelines.inspect import Calibration

EXAMPLES = """\b
Examples:
  defectgen inspect line/images --normals good --defects bad --name tiles
  defectgen inspect line/images --model tiles --fail-on-defect
  defectgen inspect line/images --reference golden --calibrate good --watch"""

_SHOWN = 40  # maximum number of images listed on the terminal
_MANY = 100  # flawless images, from which on a threshold is fairly certain
_FEW = 10  # maximum number of other files named in a note


class Score(str, Enum):
    """A kind of score (`inspection.scores`)."""

    SSIM = "ssim"
    DIFFERENCE = "difference"
    FEATURES = "features"
    SIMULATED = "simulated"
    MEMORY = "memory"
    CLASSIFIER = "classifier"


def inspect(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images to inspect, or one image.")],
    labels: Annotated[
        bool,
        option(
            "--labels",
            help="Measure how well the verdicts agree with the labels of IMAGES: a folder for each category of "
            "defects, and one of normals.",
        ),
    ] = False,
    annotations: options.Annotations = None,
    mask_values: options.MaskValues = None,
    mask_threshold: options.MaskThreshold = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            metavar="NAME",
            help="Model that repairs images, or was learned with --normals  [default: the newest]",
            autocompletion=completion.models,
        ),
    ] = None,
    weights: options.Weights = None,
    reference: Annotated[
        Path | None,
        option("--reference", metavar="DIR", help="Golden images with the same file names, instead of a model."),
    ] = None,
    normals: Annotated[
        Path | None,
        option("--normals", metavar="DIR", help="Flawless images to learn from, instead of a model."),
    ] = None,
    defects: Annotated[
        Path | None,
        option(
            "--defects",
            metavar="DIR",
            help="Known defects: with --normals to learn from as well (if they have masks), with --calibrate to choose "
            "the score and the threshold by.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", help="Name of the model that --normals makes  [default: from the folder]"),
    ] = None,
    score: Annotated[
        Score | None,
        option(
            "--score",
            metavar="KIND",
            help="With --reference or a model that repairs: ssim, difference or features; with --normals: simulated, "
            "memory or classifier  [default: the best for --defects, else the kind that suits what judges]",
        ),
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
        float | None,
        option(
            "--share",
            min=0.5,
            max=1,
            help="Share of flawless images that pass the calibrated threshold  [default: 0.99; with --defects, the one "
            "with the best F1]",
        ),
    ] = None,
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
    wait: options.Wait = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Find defects in images.

    Compares each image with a golden image, or as a model repairs it; or learns what flawless images look like.
    """
    options.exclusive(resume, overwrite, "report")

    from defectgen.pipelines.inspect import InspectionJob, InspectRequest

    console = Console(as_json=as_json, quiet=quiet)
    request = InspectRequest(
        images=images,
        labels=labels,
        marking=options.marking(annotations, mask_values, mask_threshold),
        model=model,
        weights=weights,
        reference=reference,
        normals=normals,
        defects=defects,
        name=name,
        score=score and score.value,
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
        wait=wait,
    )
    stage = "learning" if normals else "calibrating" if calibrate else None
    with console.progress(stage) if stage else nullcontext(lambda done, total: None) as progress:
        job = InspectionJob(request, progress)
    if not ranks.is_main():
        for _ in job:
            pass  # it hands them over to rank 0
        return ExitCode.OK
    console.warnings(job.warnings)
    if job.labels is not None:
        console.warnings(job.labels.warnings)
    console.warnings(job.known.warnings if job.known else ())
    for each in job.unusable:
        console.warn(printable(f"--{'normals' if normals else 'calibrate'}: skipped {each.path}: {each.reason}"))
    if job.unusable:
        console.note(f"inputs skipped: {len(job.unusable)}")
    threshold = job.criteria.threshold
    if job.calibration is not None:
        for line in _calibrated(job.calibration):
            console.note(line)
    elif not job.calibrated:
        console.note(f"threshold {threshold}, not calibrated; calibrate it on defect-free images with --calibrate DIR")
    start = time.monotonic()
    told = 0
    with console.progress("inspecting") as progress:
        for inspected in job:
            told += _tell(console, job.passed_over[told:])
            if as_json:
                console.result(inspected.row, "", kind="image")
            else:
                progress(job.inspected, len(job), f"{job.defective} defective", job.totals)
    _tell(console, job.passed_over[told:])
    speed = job.inspected / max(time.monotonic() - start, 1e-9)
    values: dict[str, Any] = {
        "out": str(out), "model": job.maker, "score": job.criteria.scorer.name, "threshold": threshold,
        "border": job.criteria.border, "calibration": _figures(job.calibration), "kept": job.kept,
    }  # fmt: skip
    totals = job.totals
    kept = f" ({job.kept} earlier)" if job.kept else ""
    summary = (
        f"{printable(str(out))}: {totals['inspected']} images inspected{kept}, {job.defective} defective, "
        f"{job.errors} unreadable, {speed:.1f} images/s"
    )
    agreement = []
    if job.figures is not None:
        values["labels"] = job.figures
        agreement = _agreement(job.figures)
        if job.kept and job.labels is not None and job.labels.masked:
            console.note("no figures of pixels, which need all images to be judged in one run: use --overwrite")
    text = "" if as_json else "\n".join([*_table(job.noted(), out), *agreement, summary])
    console.result({**values, **totals}, text)
    if fail_on_defect and job.defective:
        return ExitCode.DEFECTS_FOUND
    return ExitCode.SKIPPED if job.errors or job.unusable else ExitCode.OK


def _calibrated(of: "Calibration") -> list[str]:
    """What is known of a calibrated threshold."""
    images = f"{of.normals} flawless images" + (f" and {of.defects} defects" if of.defects else "")
    lines = [
        f"threshold {of.threshold:.4f} for score {of.scorer.name}, calibrated on {images} (95% interval "
        f"{of.low:.4f} to {of.high:.4f})"
    ]
    if of.f1 is not None:
        lines.append(
            f"of images that it was not chosen by, it finds {of.recall:.0%} of the defects, with "
            f"{of.false_alarm_rate:.1%} false alarms: F1 {of.f1:.2f}, AUROC {of.auroc:.3f}"
        )
    elif of.normals < _MANY:
        lines.append("so few images leave it uncertain; give more, or known defects with --defects")
    if of.suggested_border:
        lines.append(
            f"flawless images are least alike along their edges; --border {of.suggested_border} lowers the threshold, "
            "and ignores defects there"
        )
    elif of.border:
        lines.append(f"{of.border} pixels along the edges are ignored")
    return lines


def _figures(of: "Calibration | None") -> dict[str, Any] | None:
    if of is None:
        return None
    return {each.name: getattr(of, each.name) for each in fields(of) if each.name != "scorer"}


def _tell(console: Console, paths: Sequence[Path]) -> int:
    """Name what is not inspected; returns how many."""
    if paths:
        names = ", ".join(printable(path.name) for path in paths[:_FEW])
        more = f" and {len(paths) - _FEW} more" if len(paths) > _FEW else ""
        console.note(f"not inspected, since only images directly in the folder are: {names}{more}")
    return len(paths)


def _table(rows: list[dict[str, Any]], out: Path) -> list[str]:
    """One line for each image that is defective or unreadable, below a header."""
    if not rows:
        return []
    shown = [(printable(row["image"]), row) for row in rows[:_SHOWN]]
    width = max(len("image"), *(len(name) for name, _ in shown))
    lines = [f"{'image':{width}}   score   defects   pixels"]
    for name, row in shown:
        verdict = (
            f"{row['score']:.3f}   {len(row['boxes']):7}   {sum(row['areas']):6}" if "score" in row else "unreadable"
        )
        lines.append(f"{name:{width}}   {verdict}" + (f": {row['error']}" if "error" in row else ""))
    more = f"... and {len(rows) - _SHOWN} more, in {printable(str(out))}/report.csv"
    return [*lines, more] if len(rows) > _SHOWN else lines


def _agreement(figures: dict[str, Any]) -> list[str]:
    """How well the verdicts agree with the labels: a line for each category, and those of images and pixels."""
    alarms = figures["normals"], figures["false_alarms"], _figure(figures["false_alarm_rate"]), ""
    rows: list[tuple[str, int, int, str, str]] = [("normal", *alarms)]
    rows += [
        (printable(name), each["images"], each["found"], _figure(each["recall"]), _figure(each["auroc"]))
        for name, each in figures["categories"].items()
    ]
    width = max(len("category"), *(len(name) for name, *_ in rows))
    lines = [f"{'category':{width}}   images   defective   share   AUROC"]
    lines += [
        f"{name:{width}}   {images:6}   {found:9}   {share:>5}   {auroc:>5}".rstrip()
        for name, images, found, share, auroc in rows
    ]
    names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC"}
    lines.append("images: " + ", ".join(f"{shown} {_figure(figures[key])}" for key, shown in names.items()))
    if figures["best_threshold"] is not None:
        lines[-1] += f"; best F1 {_figure(figures['best_f1'])}, at threshold {figures['best_threshold']:.5f}"
    if pixels := figures["pixels"]:
        names = {"auroc": "AUROC", "f1": "F1", "aupro": "AUPRO"}
        lines.append("pixels: " + ", ".join(f"{shown} {_figure(pixels[key])}" for key, shown in names.items()))
        lines[-1] += f" ({pixels['images']} images, {pixels['regions']} regions)"
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
