import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from defectgen.errors import UsageError, WeightsError
from defectgen.models import registry
from defectgen.models.registry import Entry

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)


def entry(folder: Path, name: str = "tiles", **changes: Any) -> Entry:
    file = folder / "runs" / name / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(name.encode())
    values = {
        "name": name,
        "method": "dt-gan",
        "categories": ("blowhole", "crack"),
        "products": ("tiles",),
        "image_size": 64,
        "channels": 1,
        "file": file,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "created": NOON,
        "trained_on": {"tiles": folder / "photos" / "normal"},
    }
    return Entry.model_validate(values | changes)


def test_added_models_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    first = entry(tmp_path)
    second = entry(tmp_path, "road ä.v2", products=("a.b", "c d"), trained_on={"a.b": Path("/x"), "c d": Path("/y")})
    registry.add(first, file)
    registry.add(second, file)
    assert registry.read(file) == [first, second]


def test_paths_below_the_file_move_with_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    elsewhere = tmp_path / "elsewhere" / "normal"
    registry.add(entry(here, trained_on={"in": here / "photos", "out": elsewhere}), here / "weights.toml")
    here.rename(there)
    (moved,) = registry.read(there / "weights.toml")
    assert moved.file == there / "runs" / "tiles" / "model.safetensors"
    assert moved.trained_on == {"in": there / "photos", "out": elsewhere}
    registry.verify(moved)


def test_links_in_paths_are_not_followed(tmp_path: Path) -> None:
    project, disk = tmp_path / "project", tmp_path / "disk"
    project.mkdir()
    disk.mkdir()
    (project / "runs").symlink_to(disk)
    registry.add(entry(project), project / "weights.toml")
    assert 'file = "runs/tiles/model.safetensors"' in (project / "weights.toml").read_text()


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registry.add(entry(Path()), Path("weights.toml"))
    (found,) = registry.read(Path("weights.toml"))
    assert found.file == tmp_path / "runs" / "tiles" / "model.safetensors"


def test_edits_by_people_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    mine = "# our models, ask Jana before deleting\n" + file.read_text().replace("[tiles]", "[tiles] # line 3")
    file.write_text(mine)
    registry.add(entry(tmp_path, "road"), file)
    registry.add(entry(tmp_path, created=NOON + timedelta(days=1)), file)
    text = file.read_text()
    assert text.startswith("# our models, ask Jana before deleting\n")
    assert "[tiles] # line 3" in text
    assert [(each.name, each.created) for each in registry.read(file)] == [
        ("tiles", NOON + timedelta(days=1)),
        ("road", NOON),
    ]


def test_a_name_is_not_taken_from_another_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    before = file.read_text()
    other = entry(tmp_path, file=tmp_path / "other" / "model.safetensors")
    with pytest.raises(UsageError, match=r"tiles.*--name"):
        registry.add(other, file)
    with pytest.raises(UsageError, match="--name"):
        registry.check_name("tiles", other.file, file)
    assert file.read_text() == before
    registry.check_name("tiles", entry(tmp_path).file, file)
    registry.check_name("tiles", other.file, tmp_path / "none.toml")


def test_the_newest_model_that_knows_the_categories_is_found(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    for name, categories, age in (
        ("a", ("crack",), 3),
        ("b", ("crack", "fray"), 1),
        ("c", ("crack", "dent"), 2),
    ):
        registry.add(entry(tmp_path, name, categories=categories, created=NOON - timedelta(hours=age)), file)

    def found(*categories: str, name: str | None = None) -> str:
        return registry.find(name=name, categories=categories, files=[file]).name

    assert found() == "b"
    assert found("crack") == "b"
    assert found("dent") == "c"
    assert found("fray", "crack") == "b"
    assert found(name="a") == "a"
    with pytest.raises(WeightsError, match=r"knows rust; available: a knows crack; b knows crack, fray; c knows"):
        found("rust")
    with pytest.raises(WeightsError, match="fray and dent"):
        found("fray", "dent")
    with pytest.raises(WeightsError, match="no model z; available: a knows"):
        found(name="z")
    with pytest.raises(WeightsError, match="no model a that knows dent"):
        found("dent", name="a")


def test_a_text_may_stand_for_several_categories_or_for_one_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    for name, categories, age in (("parts", ("a", "b"), 1), ("whole", ("a+b",), 2)):
        registry.add(entry(tmp_path, name, categories=categories, created=NOON - timedelta(hours=age)), file)

    def found(text: str) -> str:
        def names(text: str, known: Collection[str]) -> Collection[str]:
            return (text,) if text in known else text.split("+")

        return registry.find(categories=[text], names=names, files=[file]).name

    assert (found("a+b"), found("b+a"), found("b")) == ("parts", "parts", "parts")
    registry.add(entry(tmp_path, "newer", categories=("a+b",), created=NOON), file)
    assert found("a+b") == "newer"
    with pytest.raises(WeightsError, match=r"knows a\+c; available"):
        found("a+c")


def test_own_models_come_before_newer_shipped_ones(tmp_path: Path) -> None:
    own, shipped = tmp_path / "own.toml", tmp_path / "shipped.toml"
    registry.add(entry(tmp_path, "own", created=NOON), own)
    registry.add(entry(tmp_path, "shipped", created=NOON + timedelta(days=9)), shipped)
    registry.add(entry(tmp_path, "rust", categories=("rust",)), shipped)
    assert registry.find(categories=["crack"], files=[own, shipped]).name == "own"
    assert registry.find(categories=["rust"], files=[own, shipped]).name == "rust"


class TestTheDefault:
    """What is chosen where nobody names a model."""

    def test_models_without_their_files_are_passed_over_with_one_warning(self, tmp_path: Path) -> None:
        moved, shipped, told = tmp_path / "moved.toml", tmp_path / "shipped.toml", list[str]()
        for name in ("a", "b"):
            registry.add(entry(tmp_path, name, created=NOON + timedelta(days=9)), moved)
        registry.add(entry(tmp_path, "other", categories=("rust",), file=tmp_path / "gone"), moved)
        registry.add(entry(tmp_path, "shipped"), shipped)
        for name in ("a", "b"):
            (tmp_path / "runs" / name / "model.safetensors").unlink()
        assert registry.find(categories=["crack"], files=[moved, shipped], warn=told.append).name == "shipped"
        assert told == [f"{moved}: passed over, since the file is missing: a, b; restore that, or delete the table"]
        assert registry.find(name="a", files=[moved, shipped]).name == "a"  # `verify` says what is wrong with it
        with pytest.raises(WeightsError, match=r"no usable model that knows rust; .*the file is missing: other"):
            registry.find(categories=["rust"], files=[moved])

    def test_models_of_methods_that_are_not_installed_are_passed_over(self, tmp_path: Path) -> None:
        file, told = tmp_path / "weights.toml", list[str]()
        registry.add(entry(tmp_path, "mine"), file)
        registry.add(entry(tmp_path, "odd", method="odd-gan", created=NOON + timedelta(days=1)), file)
        assert registry.find(files=[file], warn=told.append).name == "mine"
        assert "the method odd-gan is not installed: odd" in told[0]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"steps": 10}, "was trained for 10 steps only"),
            ({"steps": 2000, "stopped": True}, "was stopped after 2,000 steps"),
            ({"stopped": True}, "was stopped early"),
        ],
    )
    def test_a_trial_is_taken_only_where_nothing_else_fits_and_never_in_silence(
        self, tmp_path: Path, changes: dict[str, Any], reason: str
    ) -> None:
        own, shipped, told = tmp_path / "own.toml", tmp_path / "shipped.toml", list[str]()
        registry.add(entry(tmp_path, "trial", categories=("crack", "rust"), **changes), own)
        registry.add(entry(tmp_path, "whole", steps=2000), shipped)
        assert registry.find(categories=["crack"], files=[own, shipped], warn=told.append).name == "whole"
        assert told == [f"trial {reason}: whole is used instead; --model trial takes it"]
        told.clear()
        assert registry.find(categories=["rust"], files=[own, shipped], warn=told.append).name == "trial"
        assert told == [f"trial {reason}, but no other model fits; for better samples train longer"]
        told.clear()
        assert registry.find(name="trial", files=[own, shipped], warn=told.append).name == "trial"
        assert told == [f"trial {reason}; for better samples train longer"]

    def test_a_finished_model_that_is_newer_than_a_trial_needs_no_warning(self, tmp_path: Path) -> None:
        file, told = tmp_path / "weights.toml", list[str]()
        registry.add(entry(tmp_path, "trial", steps=10, created=NOON - timedelta(days=1)), file)
        registry.add(entry(tmp_path, "whole", steps=2000), file)
        assert registry.find(files=[file], warn=told.append).name == "whole"
        assert told == []


def test_a_model_that_is_trained_on_to_its_end_counts_as_finished(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path, steps=700, stopped=True), file)
    assert "stopped = true" in file.read_text()
    registry.add(entry(tmp_path, steps=2000), file)
    assert "stopped" not in file.read_text()
    assert registry.read(file) == [entry(tmp_path, steps=2000)]


def test_without_any_model_the_error_advises_training(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="train one first"):
        registry.find(files=[])


def test_files_are_searched_here_then_above_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "defectgen"
    deep = tmp_path / "project" / "line" / "camera"
    for folder in (package, deep):
        folder.mkdir(parents=True)
    own, above = package / "weights.toml", tmp_path / "project" / "weights.toml"
    monkeypatch.setattr(registry, "_PACKAGE", package)
    monkeypatch.chdir(deep)
    assert registry.find_registry(None) == []
    assert registry.find_writable(None) == deep / "weights.toml"
    own.touch()
    assert registry.find_registry(None) == [own]
    above.touch()
    assert registry.find_registry(None) == [above, own]
    assert registry.find_registry(None, shipped=False) == [above]
    assert registry.find_writable(None) == above
    (deep / "weights.toml").touch()
    assert registry.find_registry(None) == [deep / "weights.toml", own]
    assert registry.find_registry(Path("my.toml")) == [Path("my.toml")]
    assert registry.find_writable(Path("my.toml")) == Path("my.toml")
    monkeypatch.chdir(package)
    assert registry.find_registry(None) == [own]


def test_a_source_checkout_has_its_file_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkout" / "defectgen").mkdir(parents=True)
    (tmp_path / "checkout" / "weights.toml").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "checkout" / "defectgen")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert registry.find_registry(None) == [tmp_path / "checkout" / "weights.toml"]


def test_a_missing_or_altered_model_is_refused(tmp_path: Path) -> None:
    model = entry(tmp_path)
    registry.verify(model)
    model.file.write_bytes(b"tilez")
    with pytest.raises(WeightsError, match=r"model\.safetensors.*altered"):
        registry.verify(model)
    model.file.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors.*missing"):
        registry.verify(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[tiles]", "[tiles"), r"not valid TOML: .*line 1"),
        (('method = "dt-gan"', 'method = "dt-gan"\ncolour = 3'), r"\[tiles\] colour: "),
        (('method = "dt-gan"\n', ""), r"\[tiles\] method: "),
        (("image_size = 64", 'image_size = "large"'), r"\[tiles\] image_size: "),
        (('sha256 = "', 'sha256 = "X'), r"\[tiles\] sha256: "),
        (("[tiles]", "stray = 1\n[tiles]"), r"stray: only tables"),
        (
            ("created = 2026", "created = 0001"),
            r"\[tiles\] created: .*the year 1 cannot be right \(line 1\); correct it",
        ),
        (("created = 2026-11-20", "created = 9999-12-31"), r"\[tiles\] created: "),
        (("created = 2026-11-20", "created = 2026-13-20"), r"not valid TOML: .*line 9"),
        (("channels", "method"), r"not valid TOML: the key method of \[tiles\] stands at line 2 and again at line 6: "),
        (("channels = 1", "<<<<<<< HEAD\nchannels = 1\n======="), r"not valid TOML: a merge conflict at line 6: keep"),
        (("channels = 1", "channels = " + "[" * 100_000), "not valid TOML: "),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(WeightsError, match=rf"weights\.toml: {message}"):
        registry.read(file)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.toml: no such file"):
        registry.read(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(WeightsError, match=r"latin\.toml: not valid TOML: not UTF-8 at byte 8; save it as UTF-8"):
        registry.read(tmp_path / "latin.toml")
    (tmp_path / "weights.toml").mkdir()
    for use in (registry.read, lambda file: registry.add(entry(tmp_path), file)):
        with pytest.raises(WeightsError, match=r"weights\.toml: cannot be read \(Is a directory\)"):
            use(tmp_path / "weights.toml")


def test_times_with_and_without_zone_can_be_compared(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path, "zoned"), file)
    registry.add(entry(tmp_path, "plain", created=datetime(2030, 1, 1)), file)
    assert registry.find(files=[file]).name == "plain"


def test_the_file_is_readable_toml(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    digest = hashlib.sha256(b"tiles").hexdigest()
    assert file.read_text() == (
        "[tiles]\n"
        'method = "dt-gan"\n'
        'categories = ["blowhole", "crack"]\n'
        'products = ["tiles"]\n'
        "image_size = 64\n"
        "channels = 1\n"
        'file = "runs/tiles/model.safetensors"\n'
        f'sha256 = "{digest}"\n'
        "created = 2026-11-20T12:00:00Z\n"
        'trained_on = {tiles = "photos/normal"}\n'
    )
    assert os.fspath(tmp_path) not in file.read_text()


def test_a_folder_in_the_place_of_the_file_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.toml").mkdir()
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "none" / "defectgen")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="Is a directory"):
        registry.find(files=registry.find_registry(None))


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    registry.add(entry(tmp_path, "road"), file)
    assert [each.name for each in registry.read(file)] == ["tiles", "road"]


def test_damage_anywhere_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), file)
    whole = file.read_bytes()
    rng = random.Random(5)  # noqa: S311
    inserts = [b"", b"\0", b"\xff", b"[", b"]", b'"', b"=", b"\n", b"'", b"{", b"1e400", b"[[a]]\n", b"a.b=1\n"]
    refused = 0
    for _ in range(150):
        at, removed = rng.randrange(len(whole)), rng.choice([0, 1, 5, 40])
        file.write_bytes(whole[:at] + rng.choice(inserts) + whole[at + removed :])
        try:
            registry.verify(registry.find(files=[file]))
        except WeightsError as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("file", ["folder", "a\0b", "x" * 300, "gone"])
def test_an_entry_without_a_usable_file_bothers_no_other(tmp_path: Path, file: str) -> None:
    weights = tmp_path / "weights.toml"
    registry.add(entry(tmp_path), weights)
    odd = entry(tmp_path, "odd").model_copy(update={"file": tmp_path / file, "created": NOON - timedelta(days=1)})
    registry.add(odd, weights)
    (tmp_path / "folder").mkdir()
    registry.verify(registry.find(files=[weights]))
    with pytest.raises(WeightsError, match="the file of the model odd (is missing|cannot be read)"):
        registry.verify(registry.find(name="odd", files=[weights]))


def test_models_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    program = """
import sys
from datetime import datetime
from pathlib import Path
from defectgen.models import registry
for i in range(5):
    registry.add(registry.Entry(
        name=f"{sys.argv[1]}-{i}", method="dt-gan", categories=("a",), products=("b",), image_size=64, channels=1,
        file=Path(f"{sys.argv[1]}-{i}"), sha256="0" * 64, created=datetime(2026, 11, 20), trained_on={},
    ), Path("weights.toml"))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(registry.__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(i)], cwd=tmp_path, env=environment) for i in range(6)
    ]
    assert [process.wait(60) for process in processes] == [0] * 6
    names = {each.name for each in registry.read(tmp_path / "weights.toml")}
    assert names == {f"{i}-{j}" for i in range(6) for j in range(5)}
    assert [path.name for path in tmp_path.iterdir()] == ["weights.toml"]
