from pathlib import Path

import pytest

from defectgen import toml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = 2\na = 3\n", "line 3"),
        ("[t]\na = 1\n\na = 3\nb = 1\n", "line 4"),
        ("[t]\na = 1\n[u]\n[t]\n", "line 4"),
        ("a = 1\n[t]\n=======\n", "line 3"),
        ("a = 1\n<<<<<<< ours\n", "merge conflict at line 2"),
        ("a = 1\n>>>>>>> theirs\n", "merge conflict at line 2"),
        ("a = 1\nb = \n", "line 2"),
    ],
)
def test_an_error_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        toml.parse(tmp_path / "a.toml")


def test_utf_8_with_and_without_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.toml").write_text('a = "ä"\n', encoding=encoding)
        assert toml.parse(tmp_path / "a.toml").unwrap() == {"a": "ä"}
    (tmp_path / "a.toml").write_text("a = 1", encoding="utf-16")
    with pytest.raises(ValueError, match="not UTF-8 at byte 0; save it as UTF-8"):
        toml.parse(tmp_path / "a.toml")
