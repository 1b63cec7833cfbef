"""What a shell completes after an option. Nothing here fails: it proposes what it can."""

from contextlib import suppress
from pathlib import Path

import typer

from defectgen.errors import UserError
from defectgen.methods import info, names


def commands(ctx: typer.Context) -> list[str]:
    """The names of the commands."""
    return list(getattr(ctx.find_root().command, "commands", {}))


def methods() -> list[str]:
    """The names of the methods."""
    return list(names())


def presets(ctx: typer.Context) -> list[str]:
    """The presets of the method that is given; else of the first."""
    with suppress(UserError):
        return list(info(ctx.params.get("method") or names()[0]).presets)
    return []


def devices() -> list[str]:
    """Names of devices, whether or not there are such."""
    return ["auto", "cpu", "cuda"]


def models(ctx: typer.Context) -> list[str]:
    """The names of the models, in the lists that are searched or the one that is given."""
    from defectgen.pipelines.models import names_of_models

    weights = ctx.params.get("weights")
    with suppress(UserError, OSError):
        return names_of_models(Path(weights) if weights else None)
    return []
