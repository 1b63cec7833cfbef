"""File names as text: in records, which are UTF-8, and on the terminal, where they must not act as commands."""

import re

_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def recorded(name: str) -> str:
    r"""A file name as the records write it, always valid UTF-8, and never equal for two names.

    Bytes that are not UTF-8, which Python keeps as surrogates, become `\xfc`. A backslash that already looks like the
    start of such an escape becomes `\x5c`. Other names are unchanged.
    """
    escaped = _LIKE_AN_ESCAPE.sub(r"\\x5c", name)
    return "".join(_escape(each) if "\ud800" <= each <= "\udfff" else each for each in escaped)


def printable(text: str) -> str:
    r"""`text` on one line, without control characters: a line break becomes `\n`, an escape code `\x1b`."""
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def slug(text: str) -> str:
    """A name that is valid for a folder and for a table of `weights.toml`."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "product"


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name, as `os.fsdecode` keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
