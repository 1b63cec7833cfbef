"""`defectgen models`: lists the trained models, and adds one from elsewhere."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectgen.cli import options
from defectgen.cli.console import Console
from defectgen.cli.options import option
from defectgen.errors import ExitCode
from defectgen.text import printable

if TYPE_CHECKING:
    from defectgen.pipelines.models import ListedModel

LIST_EXAMPLES = """\b
Examples:
  defectgen models
  defectgen models --json --weights line/weights.toml"""
IMPORT_EXAMPLES = """\b
Examples:
  defectgen models import /mnt/usb/runs/steel
  defectgen models import steel.safetensors --name steel-2"""


def models(
    ctx: typer.Context,
    weights: options.Weights = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """List the trained models, or add one from elsewhere.

    Each with its method, the categories that it knows, the products that it learned them on, and whether it can be
    used. 'defectgen models import DIR' adds one.
    """
    if ctx.invoked_subcommand is not None:
        return ExitCode.OK

    from defectgen.pipelines.models import list_models

    console, found = Console(as_json=as_json, quiet=False), list_models(weights)
    for each in found if as_json else ():
        console.result(each.record(), "", kind="model")
    for file, listed in groupby(() if as_json else found, key=lambda each: each.weights):
        console.result({}, "\n".join([f"{file}:", *map(_described, listed)]))
    if not found:
        console.note("no models yet; 'defectgen train' makes one, 'defectgen models import DIR' adds one")
    return ExitCode.OK


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Run folder of a model, such as runs/steel, or its model file.")
    ],
    name: Annotated[
        str | None, option("--name", metavar="NAME", help="Name of the model here  [default: that of its folder]")
    ] = None,
    out: Annotated[Path, option("--out", "-o", metavar="DIR", help="Folder for run folders.")] = Path("runs"),
    weights: options.Weights = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Copy a model from elsewhere, after checking it, and add it to the list."""
    from defectgen.pipelines.models import import_model

    warnings: list[str] = []
    console = Console(as_json=as_json, quiet=False)
    added = import_model(source, name=name, out=out, weights=weights, warn=warnings.append)
    console.warnings(warnings)
    console.result(added.record(), f"{added.weights}:\n{_described(added)}")
    return ExitCode.OK


def _described(listed: "ListedModel") -> str:
    """A model in three lines."""
    entry = listed.entry
    facts = [
        entry.method,
        *([listed.steps] if listed.steps else []),
        entry.created.date().isoformat(),
        *([f"{listed.size / 1e6:.1f} MB"] if listed.size is not None else []),
        listed.state,
    ]
    lines = (
        f"  {entry.name}: {', '.join(facts)}",
        f"      {', '.join(entry.categories) or 'no defects'} on {', '.join(entry.products)}",
        f"      {entry.file}",
    )
    return "\n".join(map(printable, lines))
