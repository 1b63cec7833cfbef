import os
import random

import pytest

from defectgen.text import duration, printable, recorded, speed


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


@pytest.mark.parametrize(
    ("total", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(total: float, words: str) -> None:
    assert duration(total) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (1234.5, "1,234 samples/s"), (99.94, "99.9 samples/s"), (2, "2.0 samples/s"), (1, "1.0 samples/s"),
        (0.25, "4.0 s for each sample"), (0.0, "1000000000.0 s for each sample"),
    ],
)  # fmt: skip
def test_rates(rate: float, words: str) -> None:
    assert speed(rate, "samples") == words
