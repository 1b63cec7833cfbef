"""Reads `labels.csv`: the categories of each image of a folder."""

import codecs
import csv
from collections.abc import Collection
from pathlib import Path
from typing import Final

from defectgen.errors import BadInputError
from defectgen.mask_matching import normalized

NAME: Final = "labels.csv"

_DELIMITERS = ",;\t"  # spreadsheets write semicolons where the comma is the decimal sign, and tabs in UTF-16
_HEADINGS = ("file", "filename", "image", "name")


def read_labels(table: Path, images: Collection[str], reserved: str) -> dict[str, list[str]]:
    """The categories of each image, by its name in composed Unicode form, from lines `FILE,CATEGORY;CATEGORY`.

    An image may have several lines; all their categories count.

    Args:
        images: the names of the files that may be listed, in composed form.
        reserved: a name that no category may have.

    Raises:
        BadInputError: the table is not CSV, or a line has another form.
    """
    try:
        data = table.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = data.decode("utf-16" if utf16 else "utf-8-sig").splitlines()
        delimiter, rows = _rows(lines, images)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{table}: not a CSV file in UTF-8: {error}") from error
    labels: dict[str, list[str]] = {}
    for number, (name, *cells) in rows:
        if number == rows[0][0] and name.lower() in _HEADINGS and name not in images:
            continue
        categories = [normalized(each.strip()) for cell in cells for each in cell.split(";")]
        several = len(cells) != 1 if delimiter == "," else any("," in cell for cell in cells)
        if several or not categories or "" in categories or reserved in categories:
            raise BadInputError(f"{table}: line {number}: expected FILE,CATEGORY;CATEGORY, without '{reserved}'")
        labels.setdefault(name, []).extend(categories)
    return {name: list(dict.fromkeys(categories)) for name, categories in labels.items()}


def _rows(lines: list[str], images: Collection[str]) -> tuple[str, list[tuple[int, list[str]]]]:
    """The delimiter that separates the most known names, and the cells of each line with its number, from 1."""
    best: tuple[int, str, list[tuple[int, list[str]]]] | None = None
    for delimiter in _DELIMITERS:
        rows = []
        for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
            cells = [cell.strip() for cell in row]
            while delimiter != "," and cells and not cells[-1]:  # of the columns that other lines need
                cells.pop()
            if any(cells) and not (number == 1 and cells[0].startswith("sep=")):
                rows.append((number, [normalized(cells[0]), *cells[1:]]))
        known = sum(row[0] in images and len(row) > 1 for _, row in rows)
        if best is None or known > best[0]:
            best = known, delimiter, rows
    assert best is not None
    return best[1:]
