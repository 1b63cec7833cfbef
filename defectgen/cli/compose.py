"""`defectgen compose`: defects from photographs or a model, blended onto normal photographs."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectgen.cli import options, output
from defectgen.cli.console import Console, table
from defectgen.cli.options import option
from defectgen.errors import BadInputError, ExitCode, UsageError

if TYPE_CHECKING:
    from defectgen.samples import Samples

EXAMPLES = """\b
Examples:
  defectgen compose photos/defects photos/normals -n 500 --category crack
  defectgen compose --model tiles photos/normals -n 500 --region 40,0,200,300"""


class Blend(str, Enum):
    """As `defectgen.poisson.Mode`."""

    IMPROVED = "improved"
    POISSON = "poisson"
    ALPHA = "alpha"


def compose(
    ctx: typer.Context,
    num: output.Num,
    contents: Annotated[
        Path | None,
        typer.Argument(metavar="CONTENTS", help="Folder of defects with masks, as for train; none with --model."),
    ] = None,
    normals: Annotated[
        Path | None, typer.Argument(metavar="NORMALS", help="Folder of photographs to lay them on.")
    ] = None,
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="A dcdganc model that makes the contents.")
    ] = None,
    weights: options.Weights = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Masks that do not lie beside the defects.")
    ] = None,
    category: Annotated[
        list[str] | None,
        option("--category", "-c", metavar="NAME", help="Repeat for several, made in turn  [default: all]"),
    ] = None,
    per_image: output.PerImage = "1",
    scale: output.Scale = "0.8:1.25",
    rotation: output.Rotation = "0:360",
    region: output.Where = None,
    blend: Annotated[
        Blend, option("--blend", help="Improved Poisson blending; the others are there to compare.")
    ] = Blend.IMPROVED,
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
    """Blend real or generated defects onto normal photographs.

    Real ones are cut out by their masks; they need no training and no network.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a dataset and --overwrite replaces it: give one of them")
    if model is not None and normals is None:
        contents, normals = None, contents
    if normals is None or (contents is None) == (model is None):
        raise UsageError(
            "give the folders CONTENTS and NORMALS, or --model NAME and NORMALS (defectgen compose --help)"
        )

    from defectgen.folders import read_defects, read_normals
    from defectgen.samples import Wanted

    console = Console(as_json=as_json, quiet=quiet)
    placement = output.placement(scale, rotation, per_image, region, mode=blend.value)
    names = tuple(dict.fromkeys(category or []))
    catalog = read_normals(normals, product=normals.resolve().name, on_bad=on_bad.value)
    cut_outs = entry = None
    if contents is not None:
        cut_outs = read_defects(contents, masks=masks, categories=names, on_bad=on_bad.value)
        names = names or cut_outs.categories
    else:
        entry = output.find_model(model, names, weights)
        names = names or entry.categories
    skipped = (*catalog.skipped, *(cut_outs.skipped if cut_outs else ()))
    console.skipped(skipped)
    maker = entry.name if entry else str(contents)

    if dry_run or verbose:
        plan = {"contents": maker, "categories": names, **output.plan(catalog, num, out, layout), **placement.summary()}
        if dry_run:
            console.result(plan, table(plan), kind="plan")
            return ExitCode.SKIPPED if skipped else ExitCode.OK
        console.note(f"with\n{table(plan)}")

    target = output.open_folder(ctx.ensure_object(options.Switches), out, layout, resume=resume, overwrite=overwrite)
    request = Wanted(names, num, catalog, seed, workers, frozenset(target.done))
    samples: Samples[Any, Any]
    if entry is not None:
        from defectgen import sampling

        samples = sampling.synthesize(sampling.SynthesisRequest(entry, request, device, batch_size, placement))
    else:
        from defectgen import composing

        assert cut_outs is not None
        samples = composing.compose(composing.ComposeRequest(request, cut_outs, str(contents), placement))
    console.note(f"{len(samples)} samples of {', '.join(names)} from {maker}, into {out}")
    return output.write(
        console,
        samples,
        target,
        title="composing",
        workers=workers,
        skipped=len(skipped),
        values={"contents": maker},
        none_made=BadInputError(
            f"{normals}: none of {len(samples)} samples shows a defect; are the defects of {maker} larger than the "
            "region, or as faint as the photographs' own grain?"
        ),
    )
