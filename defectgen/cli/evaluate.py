"""`defectgen evaluate`: real images and a dataset in, a report of whether it helps out."""

from pathlib import Path
from typing import Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import ExitCode, UsageError

EXAMPLES = """\b
Examples:
  defectgen evaluate photos dataset --quick
  defectgen evaluate photos dataset --test held-out --out report"""

_KINDS = ("inception", "lpips")


def evaluate(
    real: Annotated[
        Path,
        typer.Argument(metavar="REAL", help="Real images: an MVTec AD category, or defects, masks and normals."),
    ],
    synthetic: Annotated[
        Path, typer.Argument(metavar="SYNTHETIC", help="A dataset of defectgen, or a folder of defects with masks.")
    ],
    test: Annotated[
        Path | None,
        option("--test", metavar="DIR", help="Held-out real images to test on  [default: those not used, 40 percent]"),
    ] = None,
    normals: Annotated[
        Path | None, option("--normals", metavar="DIR", help="Normals that do not lie beside the real defects.")
    ] = None,
    quick: Annotated[bool, option("--quick", help="Smaller: minutes on a CPU.")] = False,
    seeds: Annotated[
        int | None, option("--seeds", min=1, help="Networks of each kind  [default: 5, 3 with --quick]")
    ] = None,
    steps: Annotated[
        int | None, option("--steps", min=1, help="Steps to train each of them  [default: 600, 200 with --quick]")
    ] = None,
    features: Annotated[
        list[str] | None,
        option(
            "--features",
            metavar="KIND=FILE",
            help="A feature network for FID, KID (inception) or LPIPS (lpips); repeat for both.",
        ),
    ] = None,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Where the report goes.")] = Path("report"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Measure whether a dataset helps, and how real it looks.

    The same networks are trained without and with it, and tested on real images that nothing was made of.
    """
    options.exclusive(resume, overwrite, "report")
    files = dict(_feature(text) for text in features or [])

    from defectgen.pipelines import evaluate as pipeline

    console = Console(as_json=as_json, quiet=quiet)
    request = pipeline.EvaluateRequest(
        real=real,
        synthetic=synthetic,
        out=out,
        normals=normals,
        test=test,
        extent=(pipeline.QUICK if quick else pipeline.WHOLE).of(seeds, steps),
        features=files,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
    )
    if dry_run or verbose:
        plan = pipeline.plan(request)
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.OK
        console.note(f"with\n{table(plan)}")

    with console.progress("evaluating") as report:
        result = pipeline.evaluate(request, lambda stage, done, total: report(done, total, stage, {"part": stage}))
    for each in result.skipped:
        console.warn(f"skipped {each}")
    for warning in result.warnings:
        console.warn(warning)
    lines = [*result.verdicts, f"look at {result.report}"]
    console.result({**result.found, "report": str(result.report)}, "\n".join(lines))
    return ExitCode.SKIPPED if result.skipped else ExitCode.OK


def _feature(text: str) -> tuple[str, Path]:
    kind, _, file = text.partition("=")
    if kind not in _KINDS or not file:
        raise UsageError(f"--features {text}: give KIND=FILE, with {' or '.join(_KINDS)} as the kind")
    return kind, Path(file)
