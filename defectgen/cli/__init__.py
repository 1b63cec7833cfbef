"""The command line. It parses options and prints results; one module per command, image processing elsewhere."""

from typing import Annotated, Any

import typer

from defectgen.cli import check, compose, evaluate, inspect, models, review, synthesize, train, transfer
from defectgen.cli.help import Command, Group, help_
from defectgen.methods import names
from defectgen.version import __version__

_SETTINGS: Any = {
    "rich_markup_mode": None,  # plain text, keeps our line breaks
    "context_settings": {"help_option_names": ["--help", "-h"]},
    "cls": Group,
}
app = typer.Typer(**_SETTINGS)
app.command("train", cls=Command, epilog=train.EXAMPLES)(train.train)
app.command("synthesize", cls=Command, epilog=synthesize.EXAMPLES)(synthesize.synthesize)
app.command("transfer", cls=Command, epilog=transfer.EXAMPLES)(transfer.transfer)
app.command("compose", cls=Command, epilog=compose.EXAMPLES)(compose.compose)
app.command("review", cls=Command, epilog=review.EXAMPLES)(review.review)
app.command("check", cls=Command, epilog=check.EXAMPLES)(check.check)
app.command("inspect", cls=Command, epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("evaluate", cls=Command, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("help", cls=Command)(help_)
_models = typer.Typer(**_SETTINGS)
_models.callback(invoke_without_command=True, epilog=models.LIST_EXAMPLES)(models.models)
_models.command("import", cls=Command, epilog=models.IMPORT_EXAMPLES)(models.import_)
app.add_typer(_models, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"defectgen {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=f"""\b
Examples:
  defectgen train --method {names()[0]} photos/normal photos/defects --time 30m
  defectgen synthesize -n 500 --category crack --out dataset

Options can also be set in the environment, as DEFECTGEN_<OPTION>, or in a TOML file (--config). Results go to standard
output, everything else to standard error.""",
)
def defectgen(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Generate labeled defect images from normal images and a few real defects."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
