"""Rows of a manifest: written and read in one place, so that no renamed key hides what a sample was made of."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from defectgen.dataset.manifest import (
    Parameters,
    PlacedDefect,
    Provenance,
    Reference,
    Row,
    absolute,
    located,
    parse,
)
from defectgen.errors import BadInputError

SHA = {name: name * 64 for name in "abcd"}


def row(**changes: Any) -> Row:
    given = {
        "index": 3, "image": "images/crack/000003.png", "mask": "masks/crack/000003.png", "category": "crack",
        "product": "tile", "boxes": [[1, 2, 3, 4]], "area": 12, "source": "n.png", "source_sha256": SHA["a"],
        "method": "cut-outs", "seed": 0, "parameters": {"index": 3, "attempt": 1}, **changes,
    }  # fmt: skip
    return Row(**given)


def test_a_line_holds_what_is_set_in_its_order_and_is_read_back() -> None:
    text = row(restored="restored/000003.png").line()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == [
        "index", "image", "mask", "restored", "category", "product", "boxes", "area", "source", "source_sha256",
        "method", "seed", "parameters",
    ]  # fmt: skip
    assert json.loads(text)["parameters"] == {"index": 3, "attempt": 1}
    (again,) = parse(Path("m"), text.encode())
    assert again == row(restored="restored/000003.png")
    assert again.line() == text


def test_every_photograph_that_went_into_a_sample_is_named() -> None:
    everything = row(
        reference=Reference(file="r.png", sha256=SHA["b"]),
        style=Reference(file="s.png", sha256=SHA["c"]),
        parameters=Parameters(defects=(PlacedDefect(content="d.png", content_sha256=SHA["d"]), PlacedDefect())),
    )
    assert everything.used_photographs == set(SHA.values())
    assert everything.traceable
    assert row().used_photographs == {SHA["a"]}
    assert row(source=None, source_sha256=None).used_photographs == set()


@pytest.mark.parametrize(
    "unnamed",
    [
        {"reference": {"file": "r.png"}},
        {"style": {"file": "s.png"}},
        {"parameters": {"defects": [{"content": "d.png", "old": SHA["d"]}]}},
    ],
)
def test_a_photograph_without_its_sha256_is_noticed(unnamed: dict[str, Any]) -> None:
    """As in datasets of older versions: a name alone says nothing on another machine."""
    assert not row(**unnamed).traceable


def test_a_writer_cannot_misspell_a_key() -> None:
    given: dict[str, Any] = {"method": "m", "sourcesha256": SHA["a"]}
    with pytest.raises(ValidationError, match="sourcesha256"):
        Provenance(**given)


def test_keys_of_later_versions_survive_a_rewritten_manifest() -> None:
    text = row().line()[:-2] + ', "later": {"a": 1}}\n'
    (found,) = parse(Path("m"), text.encode())
    assert json.loads(found.line())["later"] == {"a": 1}


@pytest.mark.parametrize("path", ["../a.png", "/a.png", "images/../../a.png"])
@pytest.mark.parametrize("key", ["image", "mask", "normal"])
def test_a_path_out_of_the_dataset_is_refused_with_its_line(key: str, path: str) -> None:
    text = row().line() + json.dumps({**json.loads(row().line()), key: path})
    with pytest.raises(BadInputError, match=rf"m: line 2 cannot be read: {key}: .*is outside the dataset"):
        list(parse(Path("m"), text.encode()))


@pytest.mark.parametrize(("text", "words"), [("[]", "object"), ("{", "JSON"), ('{"index": 1}', "image"), ("\xff", "")])
def test_damaged_lines_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=f"m: line 1 cannot be read: .*{words}"):
        list(parse(Path("m"), text.encode("latin-1")))


def test_samples_of_another_run_are_told_by_what_a_run_shares() -> None:
    assert row().run == row(index=4, source="other.png").run
    assert row().run != row(seed=1).run
    assert row().run != row(gate="defects").run


def test_files_are_found_from_any_folder_and_when_all_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named relative to the dataset, unless they were absolute. A dataset may be a link to another drive."""
    work = tmp_path / "work"
    (work / "in").mkdir(parents=True)
    (work / "in/a.png").write_bytes(b"a")
    (tmp_path / "drive/deep/d").mkdir(parents=True)
    (work / "out").symlink_to(tmp_path / "drive/deep")
    monkeypatch.chdir(work)
    for name, folder in (("in/a.png", Path("d")), ("in/a.png", Path("out/d")), (str(work / "in/a.png"), Path("out/d"))):
        folder.mkdir(exist_ok=True)
        made = {"source": name, "n": 3, "parameters": {"defects": [{"content": name, "joined": {"content": name}}]}}
        row = absolute(made)
        assert row["n"] == 3
        (first,) = row["parameters"]["defects"]
        assert row["source"] == first["content"] == first["joined"]["content"]
        assert Path(row["source"]).is_absolute()
        for elsewhere in (work, tmp_path, Path("/")):
            monkeypatch.chdir(elsewhere)
            assert located(work / folder, row["source"]).read_bytes() == b"a"
        monkeypatch.chdir(work)


def test_files_of_older_rows_are_sought_from_the_folders_above_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"a")
    (tmp_path / "out/d").mkdir(parents=True)
    monkeypatch.chdir("/")
    assert located(tmp_path / "out/d", "in/a.png").read_bytes() == b"a"
    assert not located(tmp_path / "out/d", "in/b.png").exists()
