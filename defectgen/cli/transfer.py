"""`defectgen transfer`: puts the defects of one product onto images of another."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from defectgen.cli import completion, options, output
from defectgen.cli.console import Console
from defectgen.cli.options import option

EXAMPLES = """\b
Examples:
  defectgen transfer --from road/defects --to tiles/good -n 500
  defectgen transfer -n 500 --model both --from road=road/bad \\
    --to tile=tiles/good"""


class Colour(str, Enum):
    """As `defectgen.synthesis.pasted.Colour`."""

    MATCH = "match"
    KEEP = "keep"
    GRAY = "gray"


def transfer(
    ctx: typer.Context,
    num: output.Num,
    to: Annotated[
        list[str],
        option(
            "--to", metavar="[PRODUCT=]NORMALS", help="Folder of normal images to put defects onto; repeat for several."
        ),
    ],
    source: Annotated[
        list[str] | None,
        option(
            "--from",
            metavar="[PRODUCT=]DEFECTS",
            help="Folder of defects to transfer, as for train; repeat for several.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            metavar="NAME",
            help="Model that generates or transfers the defects  [default: none, cut out real ones]",
            autocompletion=completion.models,
        ),
    ] = None,
    weights: options.Weights = None,
    masks: Annotated[
        Path | None, option("--masks", metavar="DIR", help="Folder of masks of --from, if not beside the defects.")
    ] = None,
    annotations: options.Annotations = None,
    mask_values: options.MaskValues = None,
    mask_threshold: options.MaskThreshold = None,
    style: output.Style = "own",
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
    crop: Annotated[
        str, option("--crop", metavar="RANGE", help="Fraction of a defect's longer side to use: 1, or 0.3:1.")
    ] = "1",
    colour: Annotated[
        Colour,
        option("--colour", help="Match the contrast of the new background, keep the defect's colors, or make it gray."),
    ] = Colour.MATCH,
    region: output.Where = None,
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
    """Put the defects of one product onto images of another.

    Real defects are cut out by their masks. A model transfers the defects of --from or generates its own.
    """
    options.exclusive(resume, overwrite, "dataset")
    written = output.options(
        layout, val=val, normals_share=normals_share, segmentation=segmentation, instances=instances, product=product
    )

    from defectgen.pipelines.synthesize import TransferRequest, prepare_transfer

    placement = output.placement(
        scale, rotation, per_image, region, crop, place=place.value, vary=vary, colour=colour.value
    )
    chosen = (scale, rotation, per_image, crop, place, vary, colour)
    default_placement = chosen == (None, None, "1", "1", output.Places.LIKE_REAL, 1.0, Colour.MATCH)
    job = prepare_transfer(
        TransferRequest(
            num=num,
            to=tuple(output.folder(text) for text in to),
            source=tuple(output.folder(text) for text in source or ()),
            model=model,
            weights=weights,
            masks=masks,
            marking=options.marking(annotations, mask_values, mask_threshold),
            style=output.style(style),
            categories=tuple(dict.fromkeys(category or ())),
            placement=None if default_placement else placement,
            region=placement.region,
            gate=gate,
            on_bad=on_bad.value,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    )
    return output.run(
        Console(as_json=as_json, quiet=quiet), job, ctx.ensure_object(options.Switches), title="transferring",
        maker="from", out=out, layout=layout, options=written, resume=resume, overwrite=overwrite, reject=reject,
        wait=wait,
        dry_run=dry_run, verbose=verbose,
    )  # fmt: skip
