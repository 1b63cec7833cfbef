"""`defectgen transfer`: the defects of one product onto photographs of another."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectgen.cli import options, output
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import BadInputError, ExitCode, UsageError

if TYPE_CHECKING:
    from defectgen.folders import Catalog
    from defectgen.registry import Entry
    from defectgen.samples import Samples
    from defectgen.sampling import Style

EXAMPLES = """\b
Examples:
  defectgen transfer --from road/defects --to tiles/good -n 500
  defectgen transfer -n 500 --model both --from road=road/bad \\
    --to tile=tiles/good"""

_CONTENTS = ("dcdganc", "dfmgan")  # methods whose defects are laid on as contents


class Colour(str, Enum):
    """As `defectgen.composing.Colour`."""

    MATCH = "match"
    KEEP = "keep"
    GRAY = "gray"


def transfer(
    ctx: typer.Context,
    num: output.Num,
    to: Annotated[
        list[str],
        option("--to", metavar="[PRODUCT=]NORMALS", help="Photographs that get the defects; repeat for several."),
    ],
    source: Annotated[
        list[str] | None,
        option(
            "--from",
            metavar="[PRODUCT=]DEFECTS",
            help="Photographs whose defects they get, as for train; repeat for several.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option("--model", metavar="NAME", help="Makes or moves the defects  [default: none, real ones are cut out]"),
    ] = None,
    weights: options.Weights = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Masks of --from that do not lie beside the defects.")
    ] = None,
    style: Annotated[
        str,
        option(
            "--style",
            metavar="own|sampled|DEFECTS",
            help="With dt-gan: the defect's own style, a random one, or that of others.",
        ),
    ] = "own",
    category: Annotated[
        list[str] | None,
        option("--category", "-c", metavar="NAME", help="Repeat for several, made in turn  [default: all]"),
    ] = None,
    per_image: output.PerImage = "1",
    scale: output.Scale = "0.8:1.25",
    rotation: output.Rotation = "0:360",
    crop: Annotated[
        str, option("--crop", metavar="RANGE", help="The part of a defect's longer side to use: 0.3:1.")
    ] = "1",
    colour: Annotated[
        Colour, option("--colour", help="Give defects the contrast of their new ground, keep it, or make them gray.")
    ] = Colour.MATCH,
    region: output.Where = None,
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
    """Put the defects of one product onto photographs of another.

    Real defects, cut out by their masks; or by a model: dt-gan moves those of --from, the others make theirs up.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a dataset and --overwrite replaces it: give one of them")
    if model is None and not source:
        raise UsageError("give --from DEFECTS to cut out, or --model NAME of a model that knows some")
    if model is None and style != "own":
        raise UsageError(f"--style {style}: real defects keep their own; give a dt-gan model with --model")

    from defectgen.folders import Catalog, read_defects, read_normals
    from defectgen.samples import Wanted

    console = Console(as_json=as_json, quiet=quiet)
    placement = output.placement(scale, rotation, per_image, region, crop, colour=colour.value)
    names = tuple(dict.fromkeys(category or []))
    entry = output.find_model(model, names, weights) if model else None

    def read(texts: Sequence[str], masks: Path | None = None) -> Catalog:
        folders = [_named(text, entry) for text in texts]
        return Catalog.of(
            read_defects(
                folder, product=product, masks=masks, masked=entry is None, categories=names, on_bad=on_bad.value
            )
            for product, folder in folders
        )

    normals = Catalog.of(
        read_normals(folder, product=product, on_bad=on_bad.value) for product, folder in (_named(t, entry) for t in to)
    )
    references = read(source, masks) if source else None
    styles: Style | Catalog = "own" if style == "own" else "sampled" if style == "sampled" else read([style])
    read_all = [catalog for catalog in (normals, references, styles) if isinstance(catalog, Catalog)]
    skipped = Catalog.of(read_all).skipped
    console.skipped(skipped)
    names = names or _common(entry, references)
    maker = entry.name if entry else ", ".join(source or [])

    if dry_run or verbose:
        plan = {
            "model": entry and entry.name,
            "from": source,
            "categories": names,
            **output.plan(normals, num, out, layout),
            **({} if entry and entry.method not in _CONTENTS else placement.summary()),
        }
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.SKIPPED if skipped else ExitCode.OK
        console.note(f"with\n{table(plan)}")

    target = output.open_folder(ctx.ensure_object(options.Switches), out, layout, resume=resume, overwrite=overwrite)
    wanted = Wanted(names, num, normals, seed, workers, frozenset(target.done))
    samples: Samples[Any, Any]
    if entry is not None:
        from defectgen import sampling

        how: dict[str, Any] = {"placement": placement}
        guides = f"from {', '.join(source)}, style {style}" if source else ""
        if entry.method not in _CONTENTS:
            how = {"regions": ((None, placement.region),)} if placement.region is not None else {}
            if (scale, rotation, per_image, crop, colour) != ("0.8:1.25", "0:360", "1", "1", Colour.MATCH):
                raise UsageError(
                    f"{entry.name}: {entry.method} paints defects where they lie; --scale, --rotation, --per-image, "
                    f"--crop and --colour are for real defects, and for {' and '.join(_CONTENTS)}"
                )
        samples = sampling.synthesize(
            sampling.SynthesisRequest(
                entry, wanted, device, batch_size, references=references, style=styles, guides=guides, **how
            )
        )
    else:
        from defectgen import composing

        assert references is not None
        samples = composing.compose(composing.ComposeRequest(wanted, references, maker, placement))
    console.note(f"{len(samples)} samples of {', '.join(names)} from {maker}, into {out}")
    return output.write(
        console,
        samples,
        target,
        title="transferring",
        workers=workers,
        skipped=len(skipped),
        values={"from": maker},
        none_made=BadInputError(
            f"{', '.join(to)}: none of {len(samples)} samples shows a defect of {maker}; try other normals"
            + (", or train the model longer" if entry else ", or --colour keep")
        ),
    )


def _named(text: str, entry: "Entry | None") -> tuple[str, Path]:
    """`PRODUCT=DIR`, or a folder alone: of the product that it is called after."""
    product, equals, folder = text.partition("=")
    if not equals or Path(text).is_dir():
        return Path(text).resolve().name, Path(text)
    if entry is not None and product not in entry.products:
        raise UsageError(
            f"{text}: {entry.name} knows {', '.join(entry.products)}; leave out the name of a product that it has "
            "not seen"
        )
    return product, Path(folder)


def _common(entry: "Entry | None", references: "Catalog | None") -> tuple[str, ...]:
    """The categories to make, where none were named: those of the references and of the model, or both's."""
    shown = references.categories if references is not None else ()
    if entry is None:
        return shown
    both = tuple(name for name in entry.categories if references is None or name in shown)
    if not both:
        raise UsageError(f"{entry.name} knows {', '.join(entry.categories)}, but --from shows {', '.join(shown)}")
    return both
