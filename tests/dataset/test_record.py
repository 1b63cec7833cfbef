"""What is read of `dataset.json`, and what is said of a damaged one."""

from pathlib import Path

import pytest

from defectgen.dataset import record
from defectgen.errors import BadInputError


def test_what_is_known_is_read_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    assert record.read(tmp_path) == record.Record()
    (tmp_path / "dataset.json").write_text('{"layout": "plain", "trained_on": ["a", "b"], "places": {"crack": 1}}')
    found = record.read(tmp_path)
    assert (found.layout, found.trained_on, found.gated_by) == ("plain", ("a", "b"), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "JSON"), (b"[]", "object"), (b"\xff", "JSON"), (b"null", "object"),
        (b'{"trained_on": null}', "trained_on"),
        (b'{"gated_by": [[]]}', "gated_by.0"), (b'{"normals": "a.png"}', "normals"), (b"[" * 100_000, "JSON"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(BadInputError, match=rf"dataset\.json: damaged: .*{words}.*restore it"):
        record.read(tmp_path)
