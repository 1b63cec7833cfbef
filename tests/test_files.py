import errno
import hashlib
import os
import stat
import subprocess
import sys
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
        assert self.other(folder).communicate()[0] == "locked\n"

    def test_one_that_waits_comes_after(self, tmp_path: Path) -> None:
        first = self.other(tmp_path)
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        second = self.other(tmp_path, wait=True)
        first.kill()  # the lock of a killed process is gone
        first.communicate()
        assert second.communicate(timeout=20)[0] == "locked\n"

    @pytest.mark.parametrize("name", ["file/inside", "x" * 300])
    def test_what_cannot_be_written_is_the_users_error(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot write to"), files.locked(tmp_path / name):
            pass


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../other", "link/file", "", "a\\b"])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(BadInputError):
        files.inside(tmp_path, name)
    assert files.inside(tmp_path, "a/b.png") == tmp_path / "a/b.png"
