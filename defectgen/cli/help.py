"""How help is printed: options and commands in groups, examples folded to the width of the terminal."""

import inspect
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from defectgen.cli import completion

_INPUT, _MAKING, _OUTPUT, _MACHINE, _TALK = "Input", "Settings", "Output", "Machine", "Messages and configuration"
_GROUPS: Final = {
    _INPUT: "annotations backbone calibrate category defects from gate labels like mask-threshold mask-values masks "
    "model normals on-bad product reference restore test to weights",
    _MAKING: "",  # all that stands in no other group
    _OUTPUT: "dry-run format instances name normals-share out overwrite reject resume segmentation val wait",
    _MACHINE: "batch-size device seed workers",
    _TALK: "config debug help install-completion json quiet show-completion verbose version",
}
"""The long names of the options of each group. The groups are in the order of the help."""
_COMMANDS: Final = {
    "Models": "train models",
    "Datasets": "compose synthesize transfer review check",
    "Measurements": "evaluate inspect",
    "More": "",
}
_WIDEST = 30  # columns of the names
_INDENT = 6  # of the lines on which an example goes on


class Command(TyperCommand):
    """A command whose help is in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_epilog(self, formatter)


class Group(TyperGroup):
    """A command with commands below it, whose help is in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        shown = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, inspect.cleandoc(each.help or "").split("\n\n")[0]) for name, each in shown.items() if each]
        groups = _COMMANDS if len(rows) > len(_COMMANDS) else {"Commands": ""}
        _write_groups(groups, [(name, (name, text)) for name, text in rows], formatter)
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, and what follows them."""
        _write_epilog(self, formatter)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    arguments, options = [], []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None and parameter.param_type_name == "argument":
            arguments.append(("", record))
        elif record is not None:
            options.append((max(parameter.opts, key=len).lstrip("-"), record))
    _write_groups({"Arguments": ""}, arguments, formatter)
    _write_groups(_GROUPS if len(options) > len(_GROUPS) else {"Options": ""}, options, formatter)


def _write_groups(groups: dict[str, str], rows: list[tuple[str, tuple[str, str]]], formatter: Any) -> None:
    """Write definitions below the headings of their groups; the group without names has all that no other has."""
    home = {name: group for group, names in groups.items() for name in names.split()}
    rest = next(group for group, names in groups.items() if not names)
    for group in groups:
        if found := [row for name, row in rows if home.get(name, rest) == group]:
            with formatter.section(group):
                formatter.write_dl(found, col_max=min(_WIDEST, formatter.width * 2 // 5))


def _write_epilog(command: Any, formatter: Any) -> None:
    for paragraph in inspect.cleandoc(command.epilog or "").split("\n\n"):
        formatter.write_paragraph()
        if not paragraph.startswith("\b\n"):
            formatter.write_text(paragraph)
            continue
        title, *examples = paragraph.replace("\\\n", " ").splitlines()[1:]
        formatter.write(f"{title}\n")
        for example in examples:
            formatter.write("\n".join(_folded(example, formatter.width)) + "\n")


def _folded(example: str, width: int) -> list[str]:
    """A command on as many lines as it needs, as a shell takes it, each at most `width` wide if its words allow."""
    program, command, *words = example.split()
    parts = [f"  {program} {command}"]
    for word in words:
        if parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"  # an option's value stays beside it
        else:
            parts.append(word)
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + len("  \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(" " * _INDENT + part)
    return lines


def help_(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Command to explain.", autocompletion=completion.commands),
    ] = None,
) -> int:
    """Explain a command, or all of them."""
    root = ctx.find_root()
    return int(root.command.main([*(command or ()), "--help"], prog_name=root.info_name, standalone_mode=False) or 0)
