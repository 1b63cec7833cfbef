from pathlib import Path

import pytest

from defectgen import toml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = 2\na = 3\n", "the key a stands at line 1 and again at line 3: rename or delete one of them"),
        ("[t]\na = 1\n\n'a' = 3\nb = 1\n", r"the key a of \[t\] stands at line 2 and again at line 4"),
        ("[t]\na = 1\n[u]\na = 1\n['t'] # mine\n", r"the table \[t\] stands at line 1 and again at line 5"),
        ("a = 1\n[t]\n=======\n", "merge conflict at line 3"),
        ("a = 1\n||||||| base\n", "merge conflict at line 2"),
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


def test_marks_in_texts_are_no_conflict(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = '''\n<<<<<<< HEAD\n=======\n'''\n[t]\na = 1\n[u]\na = 1\n")
    assert toml.parse(tmp_path / "a.toml")["a"] == "<<<<<<< HEAD\n=======\n"
