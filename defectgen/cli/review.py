"""`defectgen review`: writes a page on which people accept and reject the samples of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import ExitCode

EXAMPLES = """\b
Examples:
  defectgen review dataset
  defectgen review dataset --out review.html"""


def review(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a dataset made by defectgen.")],
    out: Annotated[
        Path | None, option("--out", "-o", metavar="FILE", help="Page to write  [default: review.html in DATASET]")
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Write a page to accept or reject samples on.

    It shows all samples of a dataset, and exports rejected.txt for --reject of the command that made it.
    """
    from defectgen.pipelines.review import ReviewRequest
    from defectgen.pipelines.review import review as write

    console = Console(as_json=as_json, quiet=quiet)
    with console.progress("reading") as report:
        result = write(ReviewRequest(dataset=dataset, out=out), report)
    for each in result.skipped:
        console.warn(f"skipped {each}")
    values = {"page": str(result.page), "samples": result.samples, "skipped": len(result.skipped)}
    console.result(values, f"{result.page}: {result.samples} samples; open it in a browser")
    return ExitCode.SKIPPED if result.skipped else ExitCode.OK
