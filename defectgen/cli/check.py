"""`defectgen check`: says which loaders take a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console
from defectgen.errors import BadInputError, ExitCode

EXAMPLES = """\b
Examples:
  defectgen check dataset
  defectgen check dataset --json"""


def check(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset made by defectgen.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Say which loaders take a dataset as it is.

    And why others do not. None of them needs to be installed. Files that are missing, damaged or not of the dataset are
    an error.
    """
    from defectgen.dataset.checking import check as run

    found = run(dataset)
    values = {
        "dataset": str(dataset), "format": found.layout, "samples": found.samples, "normals": found.normals,
        "loaders": [vars(each) for each in found.loaders], "faults": list(found.faults),
    }  # fmt: skip
    width = max(len(each.name) for each in found.loaders)
    lines = [
        f"{each.name:{width}}  {'yes' if each.loads else 'no'}{': ' if each.remark else ''}{each.remark}"
        for each in found.loaders
    ]
    title = f"{dataset}: {found.layout}, {found.samples} samples, {found.normals} normals; loads unedited in"
    Console(as_json=as_json, quiet=False).result(values, "\n".join([title, *lines]), kind="check")
    if found.faults:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise BadInputError(f"{found.faults[0]}{more}; restore the dataset, or make it again with --overwrite")
    return ExitCode.OK
