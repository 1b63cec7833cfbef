"""`defectgen evaluate`: reports whether a dataset improves networks that are tested on real images."""

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
        typer.Argument(
            metavar="REAL", help="Folder of real images: an MVTec AD category, or defects, masks and normals."
        ),
    ],
    synthetic: Annotated[
        list[Path],
        typer.Argument(
            metavar="SYNTHETIC", help="Dataset made by defectgen, or folder of defects with masks; one or several."
        ),
    ],
    test: Annotated[
        Path | None,
        option("--test", metavar="DIR", help="Held-out real images to test on  [default: those not used, 40 percent]"),
    ] = None,
    normals: Annotated[
        Path | None, option("--normals", metavar="DIR", help="Folder of normal images, if not beside the real defects.")
    ] = None,
    annotations: options.Annotations = None,
    mask_values: options.MaskValues = None,
    mask_threshold: options.MaskThreshold = None,
    quick: Annotated[bool, option("--quick", help="Run a smaller evaluation: minutes on a CPU.")] = False,
    seeds: Annotated[
        int | None, option("--seeds", min=1, help="Number of networks per training set  [default: 5, 3 with --quick]")
    ] = None,
    steps: Annotated[
        int | None, option("--steps", min=1, help="Training steps per network  [default: 300, 60 with --quick]")
    ] = None,
    shots: Annotated[
        str,
        option("--shots", metavar="N,...", help="Number of real defects per category to train on: 1,5,20,all."),
    ] = "all",
    share: Annotated[
        float | None,
        option(
            "--share",
            min=0,
            max=1,
            help="Share of synthetic defects in training  [default: chosen by cross-validation]",
        ),
    ] = None,
    from_scratch: Annotated[
        bool, option("--from-scratch", help="Train small networks from random weights instead of ImageNet features.")
    ] = False,
    reversal: Annotated[
        bool, option("--reversal", help="Hide from the networks which defects are synthetic (gradient reversal).")
    ] = False,
    features: Annotated[
        list[str] | None,
        option(
            "--features",
            metavar="KIND=FILE",
            help="Feature network for FID and KID (inception) or LPIPS (lpips); repeat for both.",
        ),
    ] = None,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Output folder of the report.")] = Path("report"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    wait: options.Wait = False,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Measure how useful and how realistic a dataset is.

    Trains the same networks without and with the dataset, and tests them on real images that were not used to make it.
    """
    options.exclusive(resume, overwrite, "report")
    files = dict(_feature(text) for text in features or [])

    from defectgen.pipelines import evaluate as pipeline

    console = Console(as_json=as_json, quiet=quiet)
    request = pipeline.EvaluateRequest(
        real=real,
        synthetic=tuple(synthetic),
        out=out,
        normals=normals,
        marking=options.marking(annotations, mask_values, mask_threshold),
        test=test,
        extent=(pipeline.QUICK if quick else pipeline.WHOLE).of(seeds, steps),
        shots=_shots(shots),
        share=share,
        kind="scratch" if from_scratch else "fine-tuned",
        reversal=reversal,
        features=files,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
        wait=wait,
    )
    if dry_run or verbose:
        plan = pipeline.plan(request)
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.OK
        console.note(f"configuration:\n{table(plan)}")

    with console.progress("evaluating") as report:
        result = pipeline.evaluate(request, lambda stage, done, total: report(done, total, stage, {"part": stage}))
    for each in result.skipped:
        console.warn(f"skipped {each}")
    console.warnings(result.warnings)
    lines = [*result.verdicts, f"see {result.report}"]
    console.result({**result.found, "report": str(result.report)}, "\n".join(lines))
    return ExitCode.SKIPPED if result.skipped else ExitCode.OK


def _shots(text: str) -> tuple[int | None, ...]:
    """Parse `1,5,all` into numbers, with None for `all`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise UsageError(f"--shots {text}: give numbers of 1 or more, or all, such as 1,5,all")
    return tuple(None if part == "all" else int(part) for part in dict.fromkeys(parts))


def _feature(text: str) -> tuple[str, Path]:
    kind, _, file = text.partition("=")
    if kind not in _KINDS or not file:
        raise UsageError(f"--features {text}: give KIND=FILE, where KIND is {' or '.join(_KINDS)}")
    return kind, Path(file)
