"""Reads TOML files that people edit, with errors that name the line."""

import re
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")
_KEY = re.compile(r"\s*([\w-]+|\"[^\"]*\"|'[^']*')\s*=")
_ERRORS = (TOMLKitError, RecursionError, ValueError, TypeError, AttributeError, LookupError)


def parse(path: Path) -> tomlkit.TOMLDocument:
    """The contents of a TOML file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not valid TOML. The message says where, and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        return _parse(text)
    except _ERRORS as error:
        if known := _conflict(text) or _duplicate(text):
            raise ValueError(known) from error
        reason = (str(error) or "nested too deeply").rstrip(".")
        place = "" if hasattr(error, "line") else f" at line {_line_of(text, type(error))}"
        raise ValueError(f"{reason}{place}; correct it") from error


def _conflict(text: str) -> str | None:
    """What to do about the marks of a merge, if there are such."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<<", ">>>>>>>", "|||||||")) or line.rstrip() == "=======":
            return (
                f"a merge conflict at line {number}: keep the parts that are wanted, "
                "and delete the lines that begin with <<<<<<<, |||||||, ======= and >>>>>>>"
            )
    return None


def _duplicate(text: str) -> str | None:
    """The table, or the key of a table, that stands in the text twice, and where."""
    seen: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            table = header[1].strip().strip("\"'")
        found = (table, key[1].strip("\"'") if key and not header else "")
        if not (header or key):
            continue
        if found in seen:
            what = f"the key {found[1]}{f' of [{table}]' if table else ''}" if found[1] else f"the table [{table}]"
            return f"{what} stands at line {seen[found]} and again at line {number}: rename or delete one of them"
        seen[found] = number
    return None


def _parse(text: str) -> tomlkit.TOMLDocument:
    document = tomlkit.parse(text)
    document.unwrap()  # some errors only show here
    return document


def _line_of(text: str, kind: type[Exception]) -> int:
    """The number of the first line up to which `text` raises this error, for those that do not tell."""
    lines = text.splitlines()
    for count in range(1, len(lines)):
        try:
            _parse("\n".join(lines[:count]))
        except kind:
            return count
        except _ERRORS:
            pass
    return len(lines)
