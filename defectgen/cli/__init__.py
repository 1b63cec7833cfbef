"""The command line. It parses options and prints results; one module per command, image processing elsewhere."""

from typing import Annotated

import typer

from defectgen.cli import check, compose, evaluate, inspect, review, synthesize, train, transfer
from defectgen.methods import names
from defectgen.version import __version__

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # plain text, keeps our line breaks
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("synthesize", epilog=synthesize.EXAMPLES)(synthesize.synthesize)
app.command("transfer", epilog=transfer.EXAMPLES)(transfer.transfer)
app.command("compose", epilog=compose.EXAMPLES)(compose.compose)
app.command("review", epilog=review.EXAMPLES)(review.review)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("check", epilog=check.EXAMPLES)(check.check)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)


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

Options can also be set in the environment, as DEFECTGEN_<OPTION>, or in a TOML
file (--config). Results go to standard output, everything else to standard
error.""",
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
