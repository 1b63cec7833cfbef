"""`defectgen train`: trains a model, writes a run folder, and lists the model in weights.toml."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import completion, options
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import ExitCode, UsageError
from defectgen.methods import info, names
from defectgen.text import duration, speed

if TYPE_CHECKING:
    from defectgen.folders import ProductFolders
    from defectgen.marking import Marking

EXAMPLES = f"""\b
Examples:
  defectgen train --method {names()[0]} photos/normal photos/defects --time 30m
  defectgen train --method {names()[0]} --preset tiny --steps 500 --name trial \\
    --product tiles=tiles/good:tiles/bad --product road=road/good:road/bad"""

_GENERIC = {"good", "images", "normal", "normals", "ok", "train"}


def train(
    method: Annotated[
        str | None,
        option(
            "--method",
            metavar="|".join(names()),
            help="Method to train  [default: what suits the images]",
            autocompletion=completion.methods,
        ),
    ] = None,
    normals: Annotated[
        Path | None,
        typer.Argument(metavar="NORMALS", help="Folder of normal images, or an MVTec AD category."),
    ] = None,
    defects: Annotated[
        Path | None,
        typer.Argument(
            metavar="DEFECTS", help="Folder of defects: one folder per category, or the images of one category."
        ),
    ] = None,
    product: Annotated[
        list[str] | None,
        option(
            "--product",
            metavar="NAME=NORMALS:DEFECTS",
            help="Product, instead of NORMALS and DEFECTS; repeat for several.",
        ),
    ] = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Folder of masks, if not beside the defects.")
    ] = None,
    annotations: options.Annotations = None,
    mask_values: options.MaskValues = None,
    mask_threshold: options.MaskThreshold = None,
    category: Annotated[
        str | None,
        option("--category", "-c", metavar="NAME", help="Category of a flat folder  [default: its name]"),
    ] = None,
    on_bad: options.Skip = options.OnBad.SKIP,
    preset: Annotated[
        str | None,
        option(
            "--preset",
            metavar="NAME",
            help="paper, compact or tiny  [default: compact on CUDA, tiny on a CPU]",
            autocompletion=completion.presets,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="KEY=VALUE",
            help="Hyperparameter to override; repeat for several.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        option(
            "--backbone",
            metavar="NAME",
            help="Model whose backbone to use, instead of training the first stage.",
            autocompletion=completion.models,
        ),
    ] = None,
    init: Annotated[
        str | None,
        option(
            "--init", metavar="MODEL", help="Model of this method to start from: a name in weights.toml, or a file."
        ),
    ] = None,
    steps: Annotated[
        int | None, option("--steps", min=1, help="Number of training steps  [default: the preset's]")
    ] = None,
    time: Annotated[
        str | None,
        option("--time", metavar="TIME", help="Maximum training time, such as 30m, 2h or 1h30m."),
    ] = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    name: Annotated[
        str | None,
        option(
            "--name", metavar="NAME", help="Name of the run and the model  [default: METHOD-PRODUCT, numbered if taken]"
        ),
    ] = None,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Folder for run folders.")] = Path("runs"),
    weights: options.Weights = None,
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
    """Train a model on normal images and images with defects."""
    options.exclusive(resume, overwrite, "run")
    if method is not None:
        info(method)  # before anything slow

    from defectgen.pipelines.train import FEW, Progress, TrainJob, TrainRequest

    console = Console(as_json=as_json, quiet=quiet)
    request = TrainRequest(
        method=method,
        sources=_sources(
            normals, defects, product or [], masks, options.marking(annotations, mask_values, mask_threshold)
        ),
        category=category,
        on_bad=on_bad.value,
        preset=preset,
        settings=dict(_key_value(setting) for setting in settings or []),
        backbone=backbone,
        init=init,
        steps=steps,
        seconds=options.seconds(time) if time else None,
        batch_size=batch_size,
        seed=seed,
        device=device,
        workers=workers,
        name=name,
        out=out,
        weights=weights,
        resume=resume,
        overwrite=overwrite,
        wait=wait,
    )
    with console.progress("reading") as report:
        job = TrainJob(request, report)
    console.skipped(job.skipped)
    console.warnings(job.warnings)
    if job.reason:
        console.note(f"method {job.method}: {job.reason} (--method chooses another)")
    if dry_run:
        plan = job.plan()
        console.result(plan, table(plan), kind="plan")
        return ExitCode.SKIPPED if job.skipped else ExitCode.OK

    chosen = "" if preset else f" (for {'CUDA' if job.device.type == 'cuda' else 'a CPU'})"
    end = f"{job.steps:,} steps" + (f" or {time}, whichever ends first" if time else "")
    console.note(f"training {job.name} in {job.run_folder}, on {job.images} images: preset {job.preset}{chosen}, {end}")
    console.note(f"to watch it: open {job.run_folder / 'index.html'} in a browser")
    if verbose:
        console.note(f"configuration:\n{table(job.settings)}")
    with console.progress("training") as report:
        losses: dict[str, float] = {}
        diagnoses: set[str] = set()

        def on_step(progress: Progress) -> None:
            losses.update(progress.losses)
            if progress.diagnosis is not None and progress.diagnosis not in diagnoses:
                diagnoses.add(progress.diagnosis)
                console.warn(f"step {progress.step}: {progress.diagnosis}")
            detail = (
                f"{speed(progress.images_per_second, 'images')}, {duration(progress.seconds_left)} left, "
                f"{progress.passes:.1f} passes over the images"
            )
            values = {
                "images_per_second": progress.images_per_second,
                "seconds_left": progress.seconds_left,
                "passes": round(progress.passes, 2),
                "losses": dict(losses),
                **({"trouble": progress.diagnosis} if progress.diagnosis else {}),
            }
            report(progress.step, progress.steps, detail, values)

        result = job.run(on_step)

    if result.threshold is not None:
        count = result.calibrated_on
        few = "; these are few: calibrate on more with 'defectgen inspect --calibrate DIR'" if count < FEW else ""
        console.note(f"threshold {result.threshold:.4f}, calibrated on {count} held-out normals{few}")
    summary = {
        "name": result.name,
        "method": job.method,
        "model": str(result.model),
        "weights": str(result.weights),
        "previews": str(job.run_folder / "previews"),
        "categories": result.categories,
        "products": result.products,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "losses": dict(result.losses),
        "skipped": len(result.skipped),
        "stopped": result.stopped is not None,
    }
    console.result(
        summary,
        f"{result.name}: {result.steps} steps in {duration(result.seconds)}, "
        f"categories {', '.join(result.categories)}; {result.model}, listed in {result.weights}; look at "
        f"{job.run_folder / 'previews'}",
    )
    if result.stopped is not None:
        console.warn(f"stopped, everything is saved; continue with --resume --name {result.name}")
        return result.stopped
    if time and result.trial:
        shorter = "" if init else ", or start from a model that ships (--init)"
        console.warn(f"a trial of {result.steps} steps: for better samples train longer (--time 20m){shorter}")
    return ExitCode.SKIPPED if result.skipped else ExitCode.OK


def _key_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {setting}: give KEY=VALUE")
    return key.strip(), value.strip()


def _sources(
    normals: Path | None, defects: Path | None, products: list[str], masks: Path | None, marking: "Marking"
) -> "tuple[ProductFolders, ...]":
    from defectgen.folders import ProductFolders, parse_product

    if products:
        if normals or masks:
            raise UsageError("--product replaces NORMALS, DEFECTS and --masks: give one or the other")
        sources = tuple(parse_product(text).model_copy(update={"marking": marking}) for text in products)
        given = [source.product for source in sources]
        if twice := next((each for each in given if given.count(each) > 1), None):
            raise UsageError(f"--product {twice}: given twice")
        return sources
    if normals is None:
        raise UsageError(
            "give the folders NORMALS and DEFECTS, or --product NAME=NORMALS:DEFECTS (defectgen train --help)"
        )
    return (ProductFolders(product=_product(normals), normals=normals, defects=defects, masks=masks, marking=marking),)


def _product(normals: Path) -> str:
    """The product name for a folder of normals: the name of the folder, or of the first parent that is not generic."""
    folder = normals.absolute()
    return next((each.name for each in (folder, *folder.parents) if each.name.lower() not in _GENERIC), "") or "product"
