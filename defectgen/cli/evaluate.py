"""`defectgen evaluate`: real photographs and a dataset in, a report of whether it helps out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from defectgen.evaluation import EvaluateRequest

EXAMPLES = """\b
Examples:
  defectgen evaluate photos dataset --quick
  defectgen evaluate photos dataset --test kept-apart --out report"""

_KINDS = ("inception", "lpips")


def evaluate(
    real: Annotated[
        Path,
        typer.Argument(metavar="REAL", help="Real photographs: an MVTec AD category, or defects, masks and normals."),
    ],
    synthetic: Annotated[
        Path, typer.Argument(metavar="SYNTHETIC", help="A dataset of defectgen, or a folder of defects with masks.")
    ],
    test: Annotated[
        Path | None,
        option("--test", metavar="DIR", help="Real ones kept apart to test on  [default: those not used, 40 percent]"),
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
    """Tell whether a dataset helps, and how real it looks.

    The same networks are trained without and with it, and tested on real photographs that nothing was made of.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a report and --overwrite replaces it: give one of them")
    files = dict(_feature(text) for text in features or [])

    from dataclasses import replace

    from defectgen import evaluation

    console = Console(as_json=as_json, quiet=quiet)
    extent = evaluation.QUICK if quick else evaluation.WHOLE
    request = evaluation.EvaluateRequest(
        real=real,
        synthetic=synthetic,
        out=out,
        normals=normals,
        test=test,
        extent=replace(extent, seeds=seeds or extent.seeds, steps=steps or extent.steps),
        features=files,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
    )
    if dry_run or verbose:
        plan = _plan(request)
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.OK
        console.note(f"with\n{table(plan)}")

    with console.progress("evaluating") as report:

        def on_stage(stage: str, done: int, total: int) -> None:
            report(done, total, stage, {"part": stage})

        found = evaluation.evaluate(request, on_stage)
    for each in found["skipped"]:
        console.warn(f"skipped {each}")
    if not found["traceable"]:
        console.warn(f"{synthetic}: does not say what it was made of: that no test photograph is in it is unchecked")
    elif not found["trained_on_known"] and found["made_by_model"]:
        console.warn(f"{synthetic}: does not say what its model was trained on; was it the test photographs?")
    lines = evaluation.verdicts(found)
    copies = found["memorisation"]
    lines.append(f"{copies['near_copies']} of {copies['of']} synthetic defects are near-copies of real ones")
    lines.append(f"look at {out / 'report.html'}")
    console.result({**found, "report": str(out / "report.html")}, "\n".join(lines))
    return ExitCode.SKIPPED if found["skipped"] else ExitCode.OK


def _feature(text: str) -> tuple[str, Path]:
    kind, _, file = text.partition("=")
    if kind not in _KINDS or not file:
        raise UsageError(f"--features {text}: give KIND=FILE, with {' or '.join(_KINDS)} as the kind")
    return kind, Path(file)


def _plan(request: "EvaluateRequest") -> dict[str, object]:
    from defectgen import evaluation
    from defectgen.evaluation.downstream import ARMS

    real, synthetic, left_out, skipped = evaluation.read(request)
    return {
        "real_train": evaluation.counts(real.train),
        "real_test": evaluation.counts(real.test),
        "synthetic": evaluation.counts(synthetic.pictures),
        "left_out_as_near_duplicates": left_out,
        "skipped": len(skipped),
        "networks": 2 * len(ARMS) * request.extent.seeds,
        "steps_of_each": request.extent.steps,
        "out": str(request.out),
    }
