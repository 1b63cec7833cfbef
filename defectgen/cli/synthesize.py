"""`defectgen synthesize`: generates a dataset of labeled defects on normal images."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options, output
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import UsageError

if TYPE_CHECKING:
    from defectgen.synthesis.pasted import Region


class PatchFormat(str, Enum):
    """The values of `output.Format`, and patches, which are no layout but what is made."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"
    PATCHES = "patches"


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
            help="Category to generate; repeat for several, generated in turn; a+b for both in one image, "
            "a:0.3,b:0.7 for a mix  [default: all]",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        option(
            "--from",
            metavar="[PRODUCT=]DEFECTS",
            help="Images whose defects to paint, for models that use references; repeat for several.",
        ),
    ] = None,
    like: Annotated[
        list[Path] | None,
        option(
            "--like",
            metavar="FILE",
            help="A real defect, with its mask, of which to make variations, for models that use references; repeat "
            "for several.",
        ),
    ] = None,
    style: output.Style = "own",
    region: Annotated[
        list[str] | None,
        option(
            "--region",
            metavar="WHERE",
            help="Where to place defects: x,y,width,height in pixels; a mask image; 'object'. CATEGORY=WHERE, "
            "repeated, for several categories.",
        ),
    ] = None,
    strength: Annotated[
        str,
        option(
            "--strength", metavar="RANGE", help="Strength of painted defects: 1, or 0.5:1.5 for fainter to stronger."
        ),
    ] = "1",
    move: Annotated[
        str,
        option(
            "--move",
            metavar="X,Y",
            help="Pixels to the right and down by which painted defects are moved from where real ones are: 40,0, or "
            "ranges such as -40:40,-20:20.",
        ),
    ] = "0,0",
    same_object: Annotated[
        bool, option("--same-object", help="One object with several defects, for models that make whole images.")
    ] = False,
    truncation: Annotated[
        float,
        option(
            "--truncation",
            min=0.0,
            max=1.0,
            help="How far whole images are from the mean: 0.7 is less varied, and less often wrong.",
        ),
    ] = 1.0,
    restored: Annotated[bool, option("--restored", help="Also write each image with its defects removed.")] = False,
    restore: Annotated[
        Path | None,
        option(
            "--restore",
            metavar="DEFECTS",
            help="Remove the defects of these images instead: the images, masks of what was removed, and in restored/ "
            "the images without.",
        ),
    ] = None,
    gate: output.GateFolder = None,
    model: output.Model = None,
    weights: options.Weights = None,
    normals: Annotated[
        list[str] | None,
        option(
            "--normals",
            metavar="DIR",
            help="Normal images to use instead of the training set's; PRODUCT=DIR, repeated, for several products.",
        ),
    ] = None,
    on_bad: options.Skip = options.OnBad.SKIP,
    out: output.Out = Path("dataset"),
    layout: Annotated[
        PatchFormat, option("--format", help="Layout of the dataset; 'patches' are defects alone, without normals.")
    ] = PatchFormat.PLAIN,
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
    """Generate a dataset of defects on normal images.

    Each sample has a defect mask. A manifest records how each sample was made.
    """
    options.exclusive(resume, overwrite, "dataset")
    plain = output.Format.PLAIN if layout is PatchFormat.PATCHES else output.Format(layout.value)
    written = output.options(
        plain, val=val, normals_share=normals_share, segmentation=segmentation, instances=instances, product=product
    )

    from defectgen.pipelines.synthesize import SynthesizeRequest, prepare_synthesis

    job = prepare_synthesis(
        SynthesizeRequest(
            num=num,
            categories=tuple(category or ()),
            model=model,
            weights=weights,
            normals=tuple(output.folder(text) for text in normals or ()),
            source=tuple(output.folder(text) for text in source or ()),
            like=tuple(like or ()),
            style=output.style(style),
            patches=layout is PatchFormat.PATCHES,
            same_object=same_object,
            truncation=truncation,
            regions=tuple(_region(text) for text in region or ()),
            strength=output.number_range("--strength", strength, low=0.01),
            move=_move(move),
            restored=restored,
            restore=restore,
            gate=gate,
            on_bad=on_bad.value,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    )
    return output.run(
        Console(as_json=as_json, quiet=quiet), job, ctx.ensure_object(options.Switches), title="synthesizing",
        maker="model", out=out, layout=plain, options=written, resume=resume, overwrite=overwrite, reject=reject,
        wait=wait,
        dry_run=dry_run, verbose=verbose,
    )  # fmt: skip


def _region(text: str) -> "tuple[str | None, Region]":
    """Parse `WHERE` or `CATEGORY=WHERE`, both of which may contain `=`. The category is None if not given."""
    splits = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == "="][::-1]
    named = next((split for split in splits if output.is_region(split[1])), None)
    if named is None and (not splits or output.is_region(text)):
        return None, output.region(text)
    category, where = named or splits[0]
    return category, output.region(where)


def _move(text: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Parse `X,Y`, each a number or a range."""
    across, comma, down = text.partition(",")
    if not comma:
        raise UsageError(f"--move {text}: give pixels to the right and down, such as 40,0 or -40:40,-20:20")
    return output.number_range("--move", across), output.number_range("--move", down)
