"""Names of products and categories as names of folders."""

import hashlib
import re
import unicodedata
from collections.abc import Collection
from typing import Final

from defectgen.dataset.manifest import recorded

_LONGEST: Final = 255  # bytes
_SPELLED: Final = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "ł": "l",
                                 "Ł": "L", "đ": "d", "Đ": "D", "ı": "i", "ẞ": "SS"})  # fmt: skip


def folder_name(text: str) -> str:
    """A category as a folder name that is valid on every operating system; unchanged if it already is."""
    text = recorded(text)
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", text).strip(" .")
    return _shortened(f"_{name}" if _is_reserved(name) or not name else name, text)


def ascii_name(text: str, taken: Collection[str] = ()) -> str:
    """A name in ASCII letters, digits, '-' and '_', as readable as possible: `Löcher, groß` is `Locher_gross`.

    A hash of the name is appended if nothing readable is left, or if the name is `taken` by a folder.
    """
    text = recorded(text)
    spelled = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(letter for letter in spelled if not unicodedata.combining(letter))
    name = text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_")
    if not name or _is_reserved(name) or name.lower() in {each.lower() for each in taken}:
        name = f"{name or 'class'}_{_short_hash(text)}"
    return _shortened(name, text)


def _is_reserved(name: str) -> bool:
    """Whether it names a device on Windows."""
    return re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name) is not None


def _shortened(name: str, text: str) -> str:
    """A name of `text` that a file system takes; the names of mixtures of many categories may be too long."""
    data = name.encode()
    return name if len(data) <= _LONGEST else f"{data[:200].decode(errors='ignore')}_{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
