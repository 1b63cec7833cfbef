"""`defectgen synthesize`: normal photographs in, a dataset of labelled defects out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options, output
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import BadInputError, ExitCode, UsageError, WeightsError

if TYPE_CHECKING:
    from defectgen.composing import Region
    from defectgen.evaluation.gate import Gate
    from defectgen.folders import Catalog
    from defectgen.registry import Entry

EXAMPLES = """\b
Examples:
  defectgen synthesize -n 5000 --category crack
  defectgen synthesize -n 50 --normals photos/normal --format coco \\
    --region crack=40,0,200,120 --region rust=r.png"""


def synthesize(
    ctx: typer.Context,
    num: output.Num,
    category: Annotated[
        list[str] | None,
        option(
            "--category",
            "-c",
            metavar="NAME",
            help="Repeat for several, made in turn; a+b unites, a:0.3,b:0.7 mixes  [default: all]",
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        option(
            "--region",
            metavar="WHERE",
            help="x,y,width,height in pixels; a mask image; 'object'. CATEGORY=WHERE, repeated, for several at once.",
        ),
    ] = None,
    restored: Annotated[
        bool, option("--restored", help="Also write each image with its defects painted over again.")
    ] = False,
    gate: Annotated[
        Path | None,
        option(
            "--gate",
            metavar="DEFECTS",
            help="Make anew what is unlike these real defects, copies one, or marks what cannot be seen.",
        ),
    ] = None,
    model: output.Model = None,
    weights: options.Weights = None,
    normals: Annotated[
        list[str] | None,
        option(
            "--normals",
            metavar="DIR",
            help="In place of those trained on; PRODUCT=DIR, repeated, if there are several.",
        ),
    ] = None,
    on_bad: options.Skip = options.OnBad.SKIP,
    out: output.Out = Path("dataset"),
    layout: output.Layout = output.Format.PLAIN,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Make a dataset of defects on normal photographs.

    Each sample has a mask of what changed; a manifest tells how each came about.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a dataset and --overwrite replaces it: give one of them")

    from defectgen import sampling
    from defectgen.device import resolve
    from defectgen.folders import Catalog
    from defectgen.samples import Wanted

    console = Console(as_json=as_json, quiet=quiet)
    regions = tuple(_region(text) for text in region or [])
    wanted = _wanted(category or [], [name for name, _ in regions])
    entry = output.find_model(model, wanted, weights)
    categories = wanted or entry.categories
    whole = entry.method == "dfmgan" and not normals  # it makes photographs of its own
    catalog = Catalog(samples=(), skipped=()) if whole else _read_normals(entry, normals or [], on_bad)
    console.skipped(catalog.skipped)

    if dry_run or verbose:
        plan = {
            "model": entry.name,
            "method": entry.method,
            "file": str(entry.file),
            "categories": categories,
            "device": str(resolve(device)),
            **output.plan(catalog, num, out, layout),
        }
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.SKIPPED if catalog.skipped else ExitCode.OK
        console.note(f"with\n{table(plan)}")

    gatekeeper = None if gate is None else _gate(console, gate, on_bad)
    target = output.open_folder(ctx.ensure_object(options.Switches), out, layout, resume=resume, overwrite=overwrite)
    samples = sampling.synthesize(
        sampling.SynthesisRequest(
            entry=entry,
            wanted=Wanted(categories, num, catalog, seed, workers, frozenset(target.done), gatekeeper),
            device=device,
            batch_size=batch_size,
            regions=regions,
            restored=restored,
            whole=whole,
        )
    )
    console.note(f"{len(samples)} samples of {', '.join(categories)} by {entry.name}, into {out}")
    return output.write(
        console,
        samples,
        target,
        title="synthesizing",
        workers=workers,
        skipped=len(catalog.skipped),
        values={"model": entry.name},
        none_made=WeightsError(
            f"{entry.file}: none of {len(samples)} samples shows a change{' or passes --gate' if gate else ''}; "
            f"train the model {entry.name} longer"
        ),
    )


def _gate(console: Console, folder: Path, on_bad: options.OnBad) -> "Gate":
    from defectgen.evaluation.gate import Gate
    from defectgen.folders import read_defects

    real = read_defects(folder, on_bad=on_bad.value)
    console.skipped(real.skipped)
    return Gate(folder, real)


def _region(text: str) -> "tuple[str | None, Region]":
    """`WHERE`, or `CATEGORY=WHERE`."""
    category, equals, where = text.rpartition("=")
    return (category if equals else None, output.region(where))


def _wanted(categories: Sequence[str], named: Sequence[str | None]) -> tuple[str, ...]:
    """The categories to make: those given, or all those that regions name, at once."""
    names = list(dict.fromkeys(name for name in named if name is not None))
    if not names:
        if len(named) > 1:
            raise UsageError("--region: with more than one, each needs its category, as --region crack=0,0,64,64")
        return tuple(dict.fromkeys(categories))
    if categories or None in named:
        raise UsageError("--region CATEGORY=WHERE: name the category of each region, and leave out --category")
    return ("+".join(names),)


def _read_normals(entry: "Entry", given: Sequence[str], on_bad: options.OnBad) -> "Catalog":
    """The photographs to work on: those that the model was trained on, or those given in their place."""
    from defectgen.folders import Catalog, read_normals

    folders = _folders(entry, given)
    return Catalog.of(read_normals(folder, product=product, on_bad=on_bad.value) for product, folder in folders.items())


def _folders(entry: "Entry", given: Sequence[str]) -> dict[str, Path]:
    if not given:
        for folder in entry.trained_on.values():
            if not folder.is_dir():
                raise BadInputError(
                    f"{folder}: {entry.name} was trained on these normals, which are gone; use --normals DIR"
                )
        return dict(entry.trained_on)
    if len(entry.products) == 1 and len(given) == 1:
        return {entry.products[0]: Path(given[0].removeprefix(f"{entry.products[0]}="))}
    folders = {}
    for text in given:
        product, equals, path = text.partition("=")
        if not equals or product not in entry.products:
            raise UsageError(f"--normals {text}: give PRODUCT=DIR, as {entry.name} knows {', '.join(entry.products)}")
        folders[product] = Path(path)
    return folders
