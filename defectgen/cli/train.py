"""`defectgen train`: photographs in, a run folder and an entry in weights.toml out."""

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console, duration, table
from defectgen.cli.options import option
from defectgen.errors import ExitCode, UsageError
from defectgen.methods import MethodName

if TYPE_CHECKING:
    from defectgen.folders import Source

EXAMPLES = """\b
Examples:
  defectgen train --method dt-gan photos/normal photos/defects --time 30m
  defectgen train --method dt-gan --preset tiny --steps 500 --name trial \\
    --product tiles=tiles/good:tiles/bad --product road=road/good:road/bad"""

_FEW = 20  # images, of which no 99th percentile can be told
_GENERIC = {"good", "images", "normal", "normals", "ok", "train"}


def train(
    method: Annotated[MethodName, option("--method", help="The generator.")],
    normals: Annotated[
        Path | None,
        typer.Argument(metavar="NORMALS", help="Folder of defect-free photographs, or of an MVTec AD category."),
    ] = None,
    defects: Annotated[
        Path | None,
        typer.Argument(metavar="DEFECTS", help="Folder of defects, with a folder a category, or of one category."),
    ] = None,
    product: Annotated[
        list[str] | None,
        option(
            "--product",
            metavar="NAME=NORMALS:DEFECTS",
            help="A product, in place of the two folders; repeat for several.",
        ),
    ] = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Masks that do not lie beside the defects.")
    ] = None,
    category: Annotated[
        str | None,
        option("--category", "-c", metavar="NAME", help="The category of a flat folder  [default: its name]"),
    ] = None,
    on_bad: options.Skip = options.OnBad.SKIP,
    preset: Annotated[
        str, option("--preset", metavar="NAME", help="paper, compact or tiny (tiny suits a CPU).")
    ] = "compact",
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="KEY=VALUE",
            help="A hyperparameter in place of the preset's; repeat for several.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        option("--backbone", metavar="NAME", help="A dfmgan model whose backbone to share: its first stage is over."),
    ] = None,
    steps: Annotated[int | None, option("--steps", min=1, help="Steps to train  [default: the preset's]")] = None,
    time: Annotated[
        str | None,
        option("--time", metavar="TIME", help="Time to train, as 30m, 2h or 1h30m; the steps may end it sooner."),
    ] = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", help="Of the run and the model  [default: METHOD-PRODUCT, a new one]"),
    ] = None,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Where run folders go.")] = Path("runs"),
    weights: options.Weights = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Train a model on photographs without and with defects."""
    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: give one of them")
    seconds = options.seconds(time) if time else None
    given = dict(_key_value(setting) for setting in settings or [])
    given |= {key: str(value) for key, value in (("steps", steps), ("batch_size", batch_size)) if value is not None}

    from defectgen import files, inspector, registry, repairing, trainer
    from defectgen.folders import read_catalog
    from defectgen.methods import get
    from defectgen.methods.base import configure

    console = Console(as_json=as_json, quiet=quiet)
    hyperparameters = configure(get(method), preset, given)
    sources = _sources(normals, defects, product or [], masks)
    registry_file = registry.find_writable(weights)
    if name is None:
        taken = {entry.name for entry in registry.read(registry_file)} if registry_file.exists() else set()
        base = "-".join([method.value, *(_slug(source.product) for source in sources)])
        name = _unused(base, out, taken, resume=resume, overwrite=overwrite)
    elif name != _slug(name):
        raise UsageError(f"--name {name}: use letters, digits, '-', '_' and '.'; {_slug(name)} would do")
    run = out / name
    registry.check_name(name, run / "model.safetensors", registry_file)

    with console.progress("reading") as report:
        catalog = read_catalog(sources, category=category, on_bad=on_bad.value, progress=report)
    console.skipped(catalog.skipped)
    held: list[Path] = []
    if get(method).learns == "pairs":
        catalog, held = repairing.hold_out(catalog)
    request = trainer.TrainRequest(
        method=method,
        name=name,
        run=run,
        catalog=catalog,
        sources=sources,
        config=hyperparameters,
        seconds=seconds,
        seed=seed,
        device=device,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        backbone=_backbone(backbone, method, weights),
    )
    if dry_run:
        plan = trainer.estimate(request)
        console.result(plan, table(plan), kind="plan")
        return ExitCode.SKIPPED if catalog.skipped else ExitCode.OK

    console.note(f"training {name} in {run}, on {len(catalog.samples)} photographs")
    if verbose:
        console.note(f"with\n{table({'seed': seed, 'device': device, **hyperparameters.model_dump(mode='json')})}")
    with console.progress("training") as report:
        losses: dict[str, float] = {}
        troubles: set[str] = set()

        def on_step(progress: trainer.Progress) -> None:
            losses.update(progress.losses)
            if progress.trouble is not None and progress.trouble not in troubles:
                troubles.add(progress.trouble)
                console.warn(f"step {progress.step}: {progress.trouble}")
            terms = " ".join(f"{term} {value:.3g}" for term, value in losses.items())
            detail = f"{progress.images_per_second:.1f} images/s, {duration(progress.seconds_left)} left"
            values = {
                "images_per_second": progress.images_per_second,
                "seconds_left": progress.seconds_left,
                "losses": dict(losses),
                **({"trouble": progress.trouble} if progress.trouble else {}),
            }
            report(progress.step, progress.steps, f"{detail}, {terms}" if terms else detail, values)

        trained = trainer.train(request, on_step)

    if held:
        repair = repairing.NetworkRepair(trained.model, device)
        threshold = inspector.calibrate(inspector.inspect(held, repair, 0.0, workers=workers), 0.99)
        repairing.keep_threshold(trained.model, threshold)
        few = "; that is few: 'defectgen inspect --calibrate DIR' on more" if len(held) < _FEW else ""
        console.note(f"threshold {threshold:.4f}, calibrated on {len(held)} normals held out{few}")
    entry = registry.Entry(
        name=name,
        method=method.value,
        categories=trained.task.domains[1:],
        products=trained.task.products,
        image_size=hyperparameters.image_size,
        channels=trained.task.channels,
        file=trained.model,
        sha256=files.sha256(trained.model),
        created=datetime.now(timezone.utc).replace(microsecond=0),
        trained_on={source.product: source.normals.absolute() for source in sources},
    )
    registry.add(entry, registry_file)
    summary = {
        "name": name,
        "model": str(trained.model),
        "weights": str(registry_file),
        "categories": entry.categories,
        "products": entry.products,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "losses": dict(trained.losses),
        "skipped": len(catalog.skipped),
        "stopped": trained.stopped is not None,
    }
    console.result(
        summary,
        f"{name}: {trained.steps} steps in {duration(trained.seconds)}, knows {', '.join(entry.categories)}; "
        f"{trained.model}, entered in {registry_file}",
    )
    if trained.stopped is not None:
        console.warn(f"stopped, everything saved; go on with --resume --name {name}")
        return trained.stopped
    return ExitCode.SKIPPED if catalog.skipped else ExitCode.OK


def _backbone(model: str | None, method: MethodName, weights: Path | None) -> Path | None:
    """The file of a model's backbone."""
    if model is None:
        return None
    if method is not MethodName.DFMGAN:
        raise UsageError(f"--backbone {model}: {method.value} has no backbone to share; dfmgan has")

    from defectgen import registry

    file = registry.find(name=model, files=registry.find_registry(weights), methods=("dfmgan",)).file
    path = file.with_name("backbone.safetensors")
    if not path.is_file():
        raise UsageError(f"--backbone {model}: {path} is not there; train the model again")
    return path


def _key_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {setting}: give KEY=VALUE")
    return key.strip(), value.strip()


def _sources(
    normals: Path | None, defects: Path | None, products: list[str], masks: Path | None
) -> "tuple[Source, ...]":
    from defectgen.folders import Source, parse_product

    if products:
        if normals or masks:
            raise UsageError("--product takes the place of NORMALS, DEFECTS and --masks: give one or the other")
        sources = tuple(parse_product(text) for text in products)
        names = [source.product for source in sources]
        if twice := next((each for each in names if names.count(each) > 1), None):
            raise UsageError(f"--product {twice}: given twice")
        return sources
    if normals is None:
        raise UsageError(
            "give the folders NORMALS and DEFECTS, or --product NAME=NORMALS:DEFECTS (defectgen train --help)"
        )
    return (Source(product=_product(normals), normals=normals, defects=defects, masks=masks),)


def _product(normals: Path) -> str:
    """What a folder of normals is called after: itself, or the first folder above with a telling name."""
    folder = normals.absolute()
    return next((each.name for each in (folder, *folder.parents) if each.name.lower() not in _GENERIC), "") or "product"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "product"


def _unused(base: str, out: Path, taken: set[str], *, resume: bool, overwrite: bool) -> str:
    """`base`, with a number if it is not new; to resume or overwrite, the last of those that there are."""
    last, number = base, 1
    while (out / (name := base if number == 1 else f"{base}-{number}")).exists() or (
        name in taken and not (resume or overwrite)
    ):
        last, number = name, number + 1
    return last if resume or overwrite else name
