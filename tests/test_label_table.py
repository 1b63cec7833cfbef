import unicodedata
from pathlib import Path

import pytest

from defectgen.errors import BadInputError
from defectgen.label_table import read_labels

IMAGES = ("1.png", "2.png")


def read(tmp_path: Path, text: str, encoding: str = "utf-8") -> dict[str, list[str]]:
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    return read_labels(tmp_path / "labels.csv", IMAGES, "normal")


@pytest.mark.parametrize(
    "text",
    [
        "1.png,crack;rust\n2.png,rust\n",
        "1.png,crack\n1.png,rust\n2.png,rust\n2.png,rust\n",
        "file,categories\n1.png,crack ; rust\n\n2.png,rust\n",
        "1.png;crack;rust\n2.png;rust;\n",
        'sep=;\nFILENAME;CATEGORY\n1.png;"crack;rust"\n2.png;rust\n',
        "Image\tcategory\n1.png\tcrack;rust\n2.png\trust\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_dialects_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    assert read(tmp_path, text, encoding) == {"1.png": ["crack", "rust"], "2.png": ["rust"]}


def test_names_have_one_unicode_form(tmp_path: Path) -> None:
    name, category = "Gehäuse.png", "Löcher"
    table = tmp_path / "labels.csv"
    table.write_text(unicodedata.normalize("NFD", f"{name},{category}\n"), encoding="utf-8")
    assert read_labels(table, {name}, "normal") == {name: [category]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1.png\n2.png,rust\n", 1),
        ("1.png,crack\n2.png,crack,rust\n", 2),
        ("1.png;crack\n2.png;crack,rust\n", 2),  # one category with a comma, or two?
        ("1.png,crack;\n2.png,rust\n", 1),
        ("1.png,crack\n\n1.png,normal\n", 3),
    ],
)
def test_what_is_not_clear_is_an_error_that_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(BadInputError, match=rf"labels\.csv: line {line}: expected FILE,CATEGORY;CATEGORY"):
        read(tmp_path, text)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_another_encoding_is_an_error(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(BadInputError, match=r"labels\.csv"):
        read(tmp_path, "1.png,Straße\n2.png,ß\n", encoding)
