"""Reads TOML files that people edit, with errors that name the line."""

from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

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
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<<", ">>>>>>>")):
            raise ValueError(
                f"a merge conflict at line {number}: keep the parts that are wanted, "
                "and delete the lines that begin with <<<<<<<, ======= and >>>>>>>"
            )
    try:
        return _parse(text)
    except _ERRORS as error:
        reason = (str(error) or "nested too deeply").rstrip(".")
        place = "" if hasattr(error, "line") else f" at line {_line_of(text, type(error))}"
        raise ValueError(f"{reason}{place}; correct it") from error


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
