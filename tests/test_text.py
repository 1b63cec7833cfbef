import os
import random

from defectgen.text import printable, recorded


def test_names_that_are_utf_8_are_recorded_as_they_are() -> None:
    for name in ("a.png", "äöü 焊缝 🔩.png", "100% = a\\b.png", "two\nlines", "line\\xab.png"):
        assert recorded(name) == (name if "\\xab" not in name else "line\\x5cxab.png")


def test_any_name_is_recorded_in_utf_8_and_no_two_as_one() -> None:
    rng = random.Random(1)  # noqa: S311
    names = {bytes(rng.choices(b"\\x5cfe\xc3\xbc\xfc", k=rng.randrange(1, 7))) for _ in range(3000)}
    texts = {recorded(os.fsdecode(name)) for name in names}
    assert len(texts) == len(names) > 1000
    for text in texts:
        text.encode()
    assert recorded(os.fsdecode(b"M\xfcller.png")) == "M\\xfcller.png"


def test_what_is_printed_is_one_line_without_commands() -> None:
    assert printable("焊缝 a b.png") == "焊缝 a b.png"
    assert printable("a\n\r\tb\x1b[2J\x9b\u202e\u2028\udcfc\ud800\0") == (
        "a\\n\\r\\tb\\x1b[2J\\x9b\\u202e\\u2028\\xfc\\ud800\\x00"
    )
