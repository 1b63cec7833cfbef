"""`defectgen compose`: blends real or generated defects into normal images."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from defectgen.cli import completion, options, output
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import UsageError

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
    defects: Annotated[
        Path | None,
        typer.Argument(metavar="DEFECTS", help="Folder of defects with masks, as for train; omit with --model."),
    ] = None,
    normals: Annotated[
        Path | None, typer.Argument(metavar="NORMALS", help="Folder of normal images to blend the defects into.")
    ] = None,
    model: Annotated[
        str | None,
        option("--model", metavar="NAME", help="Model that generates the defects.", autocompletion=completion.models),
    ] = None,
    weights: options.Weights = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Folder of masks, if not beside the defects.")
    ] = None,
    annotations: options.Annotations = None,
    mask_values: options.MaskValues = None,
    mask_threshold: options.MaskThreshold = None,
    category: Annotated[
        list[str] | None,
        option(
            "--category", "-c", metavar="NAME", help="Category to use; repeat for several, used in turn  [default: all]"
        ),
    ] = None,
    per_image: output.PerImage = "1",
    scale: output.Scale = None,
    rotation: output.Rotation = None,
    place: output.Place = output.Places.LIKE_REAL,
    vary: output.Vary = 1.0,
    region: output.Where = None,
    blend: Annotated[
        Blend, option("--blend", help="Blending method; poisson and alpha are for comparison.")
    ] = Blend.IMPROVED,
    gate: output.GateFolder = None,
    on_bad: options.Skip = options.OnBad.SKIP,
    out: output.Out = Path("dataset"),
    layout: output.Layout = output.Format.PLAIN,
    val: output.Val = None,
    normals_share: output.NormalsShare = None,
    segmentation: output.Segmentations = None,
    instances: output.Annotations = None,
    product: output.Product = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = options.WORKERS,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    reject: output.Reject = None,
    wait: options.Wait = False,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Blend real or generated defects into normal images.

    Real defects are cut out by their masks. This needs no training and no network.
    """
    options.exclusive(resume, overwrite, "dataset")
    written = output.options(
        layout, val=val, normals_share=normals_share, segmentation=segmentation, instances=instances, product=product
    )
    if model is not None and normals is None:
        defects, normals = None, defects
    if normals is None or (defects is None) == (model is None):
        raise UsageError("give the folders DEFECTS and NORMALS, or --model NAME and NORMALS (defectgen compose --help)")

    from defectgen.pipelines.synthesize import ComposeRequest, prepare_composition

    job = prepare_composition(
        ComposeRequest(
            num=num,
            normals=normals,
            defects=defects,
            model=model,
            weights=weights,
            masks=masks,
            marking=options.marking(annotations, mask_values, mask_threshold),
            categories=tuple(dict.fromkeys(category or ())),
            placement=output.placement(
                scale, rotation, per_image, region, place=place.value, vary=vary, mode=blend.value
            ),
            gate=gate,
            on_bad=on_bad.value,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    )
    return output.run(
        Console(as_json=as_json, quiet=quiet), job, ctx.ensure_object(options.Switches), title="composing",
        maker="contents", out=out, layout=layout, options=written, resume=resume, overwrite=overwrite, reject=reject,
        wait=wait,
        dry_run=dry_run, verbose=verbose,
    )  # fmt: skip
