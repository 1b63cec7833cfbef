import errno
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from defectgen import files
from defectgen.errors import BadInputError, DiskFullError, UsageError


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    files.write(tmp_path / "new" / "deep" / "a.txt", "Prüfung\n")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "Prüfung\n".encode()
    files.write(tmp_path / "b", b"\x00\xff\r\n")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff\r\n"


def test_a_failure_halfway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("old")

    def half() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_remains_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename within one file system is atomic
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    program = (
        f"import os, sys; os.umask({umask}); from pathlib import Path; from defectgen import files; "
        "files.write(Path(sys.argv[1]), 'x')"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "a"], check=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_write_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync = os.fsync

    def record(handle: int) -> None:
        events.append(((tmp_path / "a").exists(), stat.S_ISDIR(os.fstat(handle).st_mode)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    files.write(tmp_path / "a", "x")
    assert events == [(False, False), (True, True)]  # the file before the rename, the folder after it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_device_is_reported_with_the_file(tmp_path: Path, number: int) -> None:
    def fail() -> None:
        with files.replacing(tmp_path / "a.png"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError, match=r"a\.png: no space left on device; free some and run again with --resume"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_the_system_pass() -> None:
    with pytest.raises(PermissionError), files.disk_errors(Path("a")):
        raise PermissionError(errno.EACCES, "denied")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


class TestLocked:
    def other(self, folder: Path, wait: bool = False) -> subprocess.Popen[str]:
        """A process that locks the folder, says so, and holds it until its input ends."""
        code = (
            "import sys; from pathlib import Path; from defectgen import errors, files\n"
            "try:\n"
            f"  with files.locked(Path(sys.argv[1]), wait={wait}): print('locked', flush=True); sys.stdin.read()\n"
            "except errors.UsageError as error: print(error, flush=True)"
        )
        line = [sys.executable, "-c", code, str(folder)]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def test_another_process_is_refused_until_the_first_ends(self, tmp_path: Path) -> None:
        folder = tmp_path / "new"
        with files.locked(folder), files.locked(folder):  # a process may lock it twice
            said, _ = self.other(folder).communicate()
            assert "another defectgen is writing here" in said
            assert list(folder.iterdir()) == []
        assert not folder.exists()  # it was created for nothing
        assert self.other(folder).communicate()[0] == "locked\n"

    def test_one_that_waits_comes_after(self, tmp_path: Path) -> None:
        first = self.other(tmp_path)
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        second = self.other(tmp_path, wait=True)
        first.kill()  # the lock of a killed process is gone
        first.communicate()
        assert second.communicate(timeout=20)[0] == "locked\n"

    def test_one_that_waits_locks_the_folder_that_is_there_afterwards(self, tmp_path: Path) -> None:
        """The first one removes the folder that it created for nothing, on which the second one waits."""
        folder = tmp_path / "new"
        with files.locked(folder):
            second = self.other(folder, wait=True)
            time.sleep(0.3)
        assert second.stdout is not None
        assert second.stdout.readline() == "locked\n"
        assert folder.is_dir()
        assert "another defectgen" in self.other(folder).communicate()[0]
        second.communicate()

    @pytest.mark.parametrize("name", ["file/inside", "x" * 300, "new/" + "x" * 300])
    def test_what_cannot_be_written_is_the_users_error(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write to"), files.locked(tmp_path / name):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize(
        ("number", "error"), [(errno.EROFS, UsageError), (errno.EACCES, UsageError), (errno.ENOSPC, DiskFullError)]
    )
    def test_a_folder_that_takes_no_files_is_noticed_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
    ) -> None:
        def fail(**_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
        with pytest.raises(error, match=re.escape(str(tmp_path))), files.locked(tmp_path):
            pytest.fail("the work has begun")
        monkeypatch.undo()
        with files.locked(tmp_path):  # nothing is left locked
            pass


class TestUnwritable:
    def test_a_folder_in_the_place_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(UsageError, match=r"cannot write to .*/a: .*choose another place"):
            files.write(tmp_path / "a", "x")
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    @pytest.mark.parametrize("name", ["x" * 300, "file/a"])
    def test_a_name_that_cannot_be(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write to"):
            files.write(tmp_path / name, "x")

    def test_a_name_of_the_greatest_length_can_be_written(self, tmp_path: Path) -> None:
        for name in ("x" * 255, "ä" * 127):
            files.write(tmp_path / name, name)
            assert (tmp_path / name).read_text() == name

    def test_what_fails_within_the_block_is_no_matter_of_the_output(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "a"):
            raise FileNotFoundError(errno.ENOENT, "an input")


class TestLeftovers:
    def killed(self, path: Path) -> None:
        """A process that is killed while it writes `path`."""
        code = (
            "import os, sys; from pathlib import Path; from defectgen import files\n"
            "with files.replacing(Path(sys.argv[1])) as temporary:\n"
            "  temporary.write_text('half'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9

    def test_they_go_and_nothing_else(self, tmp_path: Path) -> None:
        folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
        for path in (folder / "a/b/one.png", folder / "two.png", elsewhere / "three.png"):
            self.killed(path)
        (folder / "link").symlink_to(elsewhere)
        assert len([path for path in tmp_path.rglob(".*") if path.is_file()]) == 3
        assert not files.vacant(folder)  # a link
        (folder / "link").rename(tmp_path / "link")
        assert files.vacant(folder)
        (tmp_path / "link").rename(folder / "link")
        others = [folder / name for name in (".a.png.x1.tmp", ".hidden", "a/b/x.defectgen-tmp", "a/.defectgen-tmp.png")]
        for path in others:
            path.write_text("mine")
        files.sweep(folder)
        assert {path for path in folder.rglob("*") if path.is_file() and "link" not in path.parts} == set(others)
        assert len(list(elsewhere.iterdir())) == 1
        assert not files.vacant(folder)

    def test_those_of_one_file(self, tmp_path: Path) -> None:
        for name in ("[a].toml", "b.toml", "deep/[a].toml"):
            self.killed(tmp_path / name)
        files.sweep(tmp_path, "[a].toml")
        left = {path.name.split(".")[1] for path in tmp_path.iterdir() if path.is_file()}
        assert left == {"b"}
        assert len(list((tmp_path / "deep").iterdir())) == 1


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../other",
        "a/../../other",
        "link/file",
        "link",
        "",
        ".",
        "a\\b",
        "a\0b",
        "x" * 300,
        "\udcff" * 99,
    ],
)
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(BadInputError):
        files.inside(tmp_path, name)
    assert files.inside(tmp_path, "a/b.png") == tmp_path / "a/b.png"
