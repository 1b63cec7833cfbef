"""`defectgen synthesize`: normal photographs in, a dataset of labelled defects out."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import BadInputError, ExitCode, UsageError, WeightsError

if TYPE_CHECKING:
    from defectgen.folders import Catalog
    from defectgen.registry import Entry

EXAMPLES = """\b
Examples:
  defectgen synthesize -n 5000 --category crack
  defectgen synthesize -n 200 --normals photos/normal --format coco --out coco"""


class Format(str, Enum):
    """As `defectgen.dataset.Layout`, which cannot be imported for the help alone: it needs NumPy."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


def synthesize(
    ctx: typer.Context,
    num: Annotated[int, option("--num", "-n", min=1, help="How many samples the dataset shall have.")],
    category: Annotated[
        list[str] | None,
        option(
            "--category",
            "-c",
            metavar="NAME",
            help="Repeat for several, made in turn  [default: all the model's]",
        ),
    ] = None,
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="[default: the newest that knows the categories]")
    ] = None,
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
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Where the dataset goes.")] = Path("dataset"),
    layout: Annotated[Format, option("--format", help="The layout of the dataset.")] = Format.PLAIN,
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

    from defectgen import dataset, registry, sampling
    from defectgen.device import resolve

    console = Console(as_json=as_json, quiet=quiet)
    wanted = tuple(dict.fromkeys(category or []))
    entry = registry.find(name=model, categories=wanted, files=registry.find_registry(weights))
    registry.verify(entry)
    categories = wanted or entry.categories
    catalog = _read_normals(entry, normals or [], on_bad)
    console.skipped(catalog.skipped)

    if dry_run or verbose:
        pixels = [sample.height * sample.width * sample.channels * sample.depth // 8 for sample in catalog.samples]
        plan = {
            "model": entry.name,
            "method": entry.method,
            "file": str(entry.file),
            "categories": categories,
            "num": num,
            "normals": len(pixels),
            "skipped": len(catalog.skipped),
            "format": layout.value,
            "out": str(out),
            "device": str(resolve(device)),
            "disk_bytes_at_most": round(num * sum(pixels) / len(pixels)),
        }
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.SKIPPED if catalog.skipped else ExitCode.OK
        console.note(f"with\n{table(plan)}")

    target = dataset.open_folder(
        out,
        layout=dataset.Layout(layout.value),
        command=ctx.ensure_object(options.Switches).command,
        resume=resume,
        overwrite=overwrite,
    )
    samples = sampling.synthesize(
        sampling.SynthesisRequest(
            entry=entry,
            categories=categories,
            num=num,
            normals=catalog,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
            skip=frozenset(target.done),
        )
    )
    console.note(f"{len(samples)} samples of {', '.join(categories)} by {entry.name}, into {out}")
    with console.progress("synthesizing") as report:
        written = 0

        def on_sample(_sample: dataset.Synthesized) -> None:
            nonlocal written
            written += 1
            report(written, len(samples), f"{samples.redrawn} drawn again", {"redrawn": samples.redrawn})

        summary = target.write(samples, normals=samples.normals(), workers=workers, on_sample=on_sample)

    failed = len(samples.failed)
    if failed and failed == len(samples):
        raise WeightsError(
            f"{entry.file}: none of {failed} samples shows a change; train the model {entry.name} longer"
        )
    values = {
        "out": str(out),
        "model": entry.name,
        "written": summary.written,
        "kept": summary.kept,
        "redrawn": samples.redrawn,
        "failed": failed,
        "skipped": len(catalog.skipped),
        "sheet": str(summary.sheet),
    }
    console.result(
        values,
        f"{out}: {summary.written} samples written, {summary.kept} kept, {samples.redrawn} drawn again, "
        f"{failed} given up; look at {summary.sheet}",
    )
    return ExitCode.SKIPPED if catalog.skipped else ExitCode.OK


def _read_normals(entry: "Entry", given: Sequence[str], on_bad: options.OnBad) -> "Catalog":
    """The photographs to work on: those that the model was trained on, or those given in their place."""
    from defectgen.folders import Catalog, read_normals

    folders = _folders(entry, given)
    read = [read_normals(folder, product=product, on_bad=on_bad.value) for product, folder in folders.items()]
    return Catalog(
        samples=tuple(sample for catalog in read for sample in catalog.samples),
        skipped=tuple(each for catalog in read for each in catalog.skipped),
    )


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
