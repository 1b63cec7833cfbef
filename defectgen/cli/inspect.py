"""`defectgen inspect`: line images in; verdicts, masks, overlays and a report out."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectgen.cli import options
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import BadInputError, ExitCode, UsageError

if TYPE_CHECKING:
    from defectgen.inspector import Repair

EXAMPLES = """\b
Examples:
  defectgen inspect line/images --model tiles --fail-on-defect
  defectgen inspect line/images --reference golden --calibrate good --watch"""

_POLL = 0.5  # seconds
_PATIENCE = 5.0  # seconds that an image which cannot be read may still be being written
_SHOWN = 40  # lines on the terminal


def inspect(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images to inspect, or one image.")],
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="An isu-gan model  [default: the newest one]")
    ] = None,
    weights: options.Weights = None,
    reference: Annotated[
        Path | None,
        option("--reference", metavar="DIR", help="Golden images of the same names, in place of a model."),
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
        float, option("--share", min=0.5, max=1, help="Of flawless images that shall pass when calibrating.")
    ] = 0.99,
    border: Annotated[
        int | None,
        option("--border", min=0, help="Pixels along the edges that are not judged  [default: as calibrated, or 0]"),
    ] = None,
    fail_on_defect: Annotated[bool, option("--fail-on-defect", help="End with code 9 if a defect was found.")] = False,
    watch: Annotated[bool, option("--watch", help="Go on with images that arrive, until stopped.")] = False,
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
    if resume and overwrite:
        raise UsageError("--resume goes on with a report and --overwrite replaces it: give one of them")
    if reference is not None and model is not None:
        raise UsageError("--reference takes the place of --model: give one of them")
    if threshold is not None and calibrate is not None:
        raise UsageError("--calibrate finds the threshold that --threshold gives: give one of them")

    from defectgen import inspector
    from defectgen.findings import Report

    console = Console(as_json=as_json, quiet=quiet)
    if not images.exists():
        raise BadInputError(f"{images}: no such file or folder")
    repair, known, its_border, maker = _repair(model, weights, reference, device)
    if border is None:
        border = its_border if calibrate is None else 0
    if calibrate is not None:
        findings = inspector.inspect(_listed(calibrate), repair, 0.0, border=border, workers=workers)
        known = inspector.calibrate(findings, share)
        console.note(f"threshold {known:.4f}, which {share:.1%} of the images in {calibrate} stay below")
        if reference is None:
            _keep(maker, weights, known, border)
    limit = threshold if threshold is not None else known
    if limit is None:
        if reference is None:
            raise UsageError(f"--model {maker}: knows no threshold yet; give --calibrate DIR or --threshold")
        limit = inspector.UNCALIBRATED
        console.note(f"threshold {limit}, not calibrated; --calibrate DIR finds a better one on flawless images")

    report = Report(out, resume=resume, overwrite=overwrite)
    totals = {"inspected": 0, "defective": 0, "errors": 0}
    noted: list[dict[str, Any]] = []
    began = time.monotonic()
    arrivals = _Arrivals(images, report.done, forever=watch)
    try:
        with console.progress("inspecting") as progress:
            for finding in inspector.inspect(arrivals, repair, limit, border=border, workers=workers):
                if isinstance(finding, inspector.Unreadable) and arrivals.offer_again(finding.path):
                    continue
                row = report.add(finding)
                totals["inspected"] += 1
                totals["errors"] += "error" in row
                totals["defective"] += bool(row.get("defective"))
                if as_json:
                    console.result(row, "", kind="image")
                elif row.get("defective") or "error" in row:
                    noted.append(row)
                if not as_json:
                    done = totals["inspected"]
                    progress(done, max(done, len(arrivals)), f"{totals['defective']} defective", totals)
    finally:
        if report.done:
            report.write_table()
    seconds = time.monotonic() - began
    values = {
        "out": str(out),
        "model": maker,
        "threshold": limit,
        "border": border,
        "kept": len(report.done) - totals["inspected"],
    }
    lines = _table(noted)
    lines += [f"... and {len(noted) - _SHOWN} more, in {out}/report.csv"] if len(noted) > _SHOWN else []
    lines += [
        f"{out}: {totals['inspected']} images inspected, {totals['defective']} defective, "
        f"{totals['errors']} unreadable, {totals['inspected'] / max(seconds, 1e-9):.1f} images/s"
    ]
    console.result({**values, **totals}, "\n".join(lines))
    if fail_on_defect and totals["defective"]:
        return ExitCode.DEFECTS_FOUND
    return ExitCode.SKIPPED if totals["errors"] else ExitCode.OK


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


def _repair(
    model: str | None, weights: Path | None, reference: Path | None, device: str
) -> "tuple[Repair, float | None, int, str]":
    """What repairs images, the threshold that it knows, with which border, and its name."""
    if reference is not None:
        from defectgen import inspector

        if not reference.is_dir():
            raise BadInputError(f"--reference {reference}: no such folder")
        return inspector.golden(reference), None, 0, str(reference)

    from defectgen import registry
    from defectgen.repairing import NetworkRepair

    files = registry.find_registry(weights)
    entry = registry.find(name=model, files=files, methods=("isu-gan",))
    registry.verify(entry)
    repair = NetworkRepair(entry.file, device)
    return repair, repair.threshold, repair.border, entry.name


def _keep(model: str, weights: Path | None, threshold: float, border: int) -> None:
    """Write a calibrated threshold into a model's file, and its new sha256 into the list of models."""
    from defectgen import files, registry
    from defectgen.repairing import keep_threshold

    for file in registry.find_registry(weights):
        entry = next((each for each in registry.read(file) if each.name == model), None)
        if entry is not None:
            keep_threshold(entry.file, threshold, border)
            registry.add(entry.model_copy(update={"sha256": files.sha256(entry.file)}), file)
            return


def _listed(folder: Path) -> list[Path]:
    from defectgen.images import is_photograph

    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if is_photograph(path) and not path.name.startswith("."))
    if not paths:
        raise BadInputError(f"{folder}: no images in it")
    return paths


class _Arrivals:
    """The images of a folder that are not yet done, and, if `forever`, those that arrive, None while there are none.

    An arriving image is taken when its size and time have not changed from one look to the next; one that cannot be
    read yet, being still written, is offered again when it has changed.
    """

    def __init__(self, images: Path, done: set[str], *, forever: bool) -> None:
        self._images, self._forever, self._done = images, forever, done
        self._paths = [] if forever else [path for path in _listed(images) if str(path) not in done]
        self._taken: set[Path] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Path | None]:
        yield from self._paths
        seen: dict[Path, tuple[int, int]] = {}
        while self._forever:
            now = {path: _stamp(path) for path in self._there()}
            for path, stamp in now.items():
                if stamp[0] and seen.get(path) == stamp:
                    self._taken.add(path)
                    yield path
            seen = now
            yield None
            time.sleep(_POLL)

    def _there(self) -> list[Path]:
        from defectgen.images import is_photograph

        paths = sorted(path for path in self._images.iterdir() if is_photograph(path) and not path.name.startswith("."))
        return [path for path in paths if path not in self._taken and str(path) not in self._done]

    def offer_again(self, path: Path) -> bool:
        """Whether an unreadable image was written to lately, and so may be whole soon; else it stands as read."""
        lately = self._forever and time.time() - _stamp(path)[1] / 1e9 < _PATIENCE
        if lately:
            self._taken.discard(path)
        return lately


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # gone again
        return 0, 0
    return status.st_size, status.st_mtime_ns
