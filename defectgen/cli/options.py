"""Options shared by several commands, and reading options from the environment and from `--config`."""

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectgen import ranks, toml
from defectgen.cli import completion
from defectgen.errors import UsageError

if TYPE_CHECKING:
    from defectgen.marking import Marking

WORKERS = max(1, min(8, (os.cpu_count() or 1) // ranks.on_machine()))


@dataclass
class Switches:
    """State shared by `__main__` and the command: the command line, and how to report errors."""

    command: str = "defectgen"
    json: bool = False
    debug: bool = False


class OnBad(str, Enum):
    """How to handle inputs that cannot be used."""

    SKIP = "skip"
    FAIL = "fail"


def option(*names: str, help: str, **settings: Any) -> Any:
    """A Typer option that can also be set in the environment: --batch-size as DEFECTGEN_BATCH_SIZE."""
    long = next(name for name in names if name.startswith("--"))
    variable = "DEFECTGEN_" + long[2:].replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, show_envvar=False, **settings)


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use the values of a TOML file as defaults. The command line and the environment take precedence.

    Raises:
        UsageError: the file is unreadable, or has unknown options or values of the wrong form.
    """
    if path is None:
        return None
    try:
        document: dict[str, Any] = toml.parse(path).unwrap()
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from error
    commands = getattr(ctx.parent and ctx.parent.command, "commands", {})
    values = {key: value for key, value in document.items() if key not in commands}
    own = document.get(str(ctx.info_name), {})
    if not isinstance(own, dict):
        raise UsageError(f"--config {path}: {ctx.info_name} must be a table: [{ctx.info_name}]")
    parameters = {
        max([*parameter.opts], key=len).lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        if parameter.name not in ("config", "help")
    }
    defaults: dict[str, Any] = {}
    for key, value in {**values, **own}.items():
        parameter = parameters.get(key.replace("-", "_"))
        if parameter is None:
            known = ", ".join(sorted(name.replace("_", "-") for name in parameters))
            raise UsageError(f"--config {path}: {ctx.info_name} has no option {key}; it has {known}")
        many = getattr(parameter, "multiple", False)
        if isinstance(value, dict) or (isinstance(value, list) and not many):
            raise UsageError(f"--config {path}: {key} takes {'values or a list' if many else 'one value'}")
        # Text, as on the command line, so that Typer checks it in the same way. Only flags accept true and false.
        flag = getattr(parameter, "is_flag", False) and isinstance(value, bool)
        texts = [each if flag else str(each) for each in (value if isinstance(value, list) else [value])]
        defaults[str(parameter.name)] = texts if many else texts[0]
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _note_json(ctx: typer.Context, wanted: bool) -> bool:
    ctx.ensure_object(Switches).json = wanted
    return wanted


def _note_debug(ctx: typer.Context, wanted: bool) -> bool:
    ctx.ensure_object(Switches).debug = wanted
    return wanted


def exclusive(resume: bool, overwrite: bool, what: str) -> None:
    """Check that --resume and --overwrite are not both given. `what` names the output, for the message.

    Raises:
        UsageError: both are given.
    """
    if resume and overwrite:
        raise UsageError(f"--resume continues a {what}, --overwrite replaces it: give one of them")


def marking(annotations: Path | None, values: str | None, threshold: int | None) -> "Marking":
    """How defects are marked, by the options of that.

    Raises:
        UsageError: a malformed value, or several options.
    """
    from defectgen.marking import Marking, parse_values

    return Marking(annotations, parse_values(values) if values is not None else (), threshold)


def seconds(text: str) -> float:
    """Parse a duration such as `90s`, `30m`, `2h` or `1h30m` into seconds.

    Raises:
        UsageError: the text has another form, or the duration is 0.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower())
    total = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if total <= 0:
        raise UsageError(f"--time {text}: give hours, minutes or seconds, such as 2h, 30m, 90s or 1h30m")
    return total


Config = Annotated[
    Path | None,
    option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_read_config,
        help="Read options from a TOML file, by their long names.",
    ),
]
Json = Annotated[
    bool,
    option("--json", is_eager=True, callback=_note_json, help="Print JSON Lines, each with a message_type."),
]
Debug = Annotated[bool, option("--debug", is_eager=True, callback=_note_debug, help="Show the traceback of an error.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="Print only results, warnings and errors, no progress.")]
Verbose = Annotated[bool, option("--verbose", "-v", help="Print the resolved configuration first.")]
Weights = Annotated[
    Path | None,
    option("--weights", metavar="FILE", help="The list of models  [default: weights.toml, here or in a parent folder]"),
]
Seed = Annotated[int, option("--seed", min=0, help="Random seed.")]
Device = Annotated[
    str, option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)
]
BatchSize = Annotated[
    int | None,
    option("--batch-size", min=1, help="Batch size  [default: from preset or device]"),
]
Workers = Annotated[int, option("--workers", min=1, help="Number of threads that read, crop and encode images.")]
Annotations = Annotated[
    Path | None,
    option(
        "--annotations",
        metavar="FILE|DIR",
        help="Annotations of the defects, instead of masks: LabelMe, COCO, YOLO, CVAT or Pascal VOC.",
    ),
]
MaskValues = Annotated[
    str | None,
    option(
        "--mask-values",
        metavar="VALUE=NAME,...",
        help="Categories that values of the masks stand for, such as 2=crack,3=dent.",
    ),
]
MaskThreshold = Annotated[
    int | None,
    option(
        "--mask-threshold",
        min=1,
        max=65535,
        help="Accept masks of any values, such as JPEGs; those from this one up mark the defect.",
    ),
]
Resume = Annotated[bool, option("--resume", help="Continue an earlier run where it stopped.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace the output of an earlier run.")]
Wait = Annotated[bool, option("--wait", help="Wait for another run that writes to the same folder, instead of ending.")]
DryRun = Annotated[bool, option("--dry-run", help="Print the resolved configuration and exit.")]
Skip = Annotated[OnBad, option("--on-bad", help="Images that cannot be used: skip them with a warning, or fail.")]
