"""Atomic file writing (temporary file, fsync, rename), locks, checks of paths, and file checksums."""

import errno
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from defectgen.errors import BadInputError, DiskFullError, UsageError

fcntl: Any = None
with suppress(ImportError):  # Windows has none
    import fcntl

# The umask can only be read by setting it, which affects other threads. So it is read once, at import.
_UMASK = os.umask(0)
os.umask(_UMASK)
_UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EINVAL,
    errno.EISDIR, errno.ELOOP,
}  # fmt: skip
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = ".defectgen-tmp"
_NAME_SHOWN = 40  # characters of a file's name in that of its temporary file, which must not get too long
_LONGEST_NAME = 255  # bytes
_held: dict[Path, int] = {}  # folders that this process has locked, and how often


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskFullError if the device is full while `path` is written. Other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise DiskFullError(f"{path}: no space left on device; free some and run again with --resume") from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block ends without an error.

    The file and its folder are synced to disk. The file's mode follows the umask, as for any newly opened file.
    If the block raises, the temporary file is deleted and `path` is left unchanged.

    Raises:
        DiskFullError: the device is full.
        UsageError: the file or its folder cannot be written.
    """
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(path.name), suffix=_TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
            with writable(path):
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_UMASK)
                temporary.replace(path)
                _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to sync it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prefix(name: str) -> str:
    """How the names of the temporary files of a file begin."""
    return f".{name[:_NAME_SHOWN]}."


def sweep(folder: Path, name: str = "") -> None:
    """Delete the temporary files that killed processes left in a folder and below, or those of the file `name` in it.

    The caller has locked the folder. Links are not followed.
    """
    found = folder.glob(f"{glob.escape(_prefix(name))}*") if name else _entries(folder)
    for path in found:
        if _is_temporary(path):
            path.unlink(missing_ok=True)


def vacant(folder: Path) -> bool:
    """Whether a folder and its subfolders hold no file or link, except temporary files of killed processes."""
    return all(map(_is_temporary, _entries(folder)))


def _entries(folder: Path) -> Iterator[Path]:
    """All files and links in a folder and below. Links are not followed."""
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
        yield from (Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name)))


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY) and not path.is_symlink()


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder until the block ends. It is created if missing, and removed if left empty.

    The lock is on the folder itself, so no file is left behind, even by a process that is killed. A process can lock a
    folder several times. Windows and some network drives cannot lock folders; there it locks nothing.

    Args:
        wait: wait for another process, instead of raising.

    Raises:
        UsageError: another process has locked it, or it cannot be created or written.
        DiskFullError: the device is full.
    """
    with ExitStack() as stack:
        with writable(folder):
            created = [path for path in (folder, *folder.parents) if not path.exists()]
            for parent in reversed(created[1:]):
                stack.callback(_remove_empty, parent)
            folder.mkdir(parents=True, exist_ok=True)
            key = folder.resolve()
            if fcntl is not None and key not in _held:
                stack.callback(os.close, _lock(key, folder, wait))
            _held[key] = _held.get(key, 0) + 1
            stack.callback(_release, key)
            if created:
                stack.callback(_remove_empty, folder)  # while it is still locked
            tempfile.TemporaryFile(prefix=".", suffix=_TEMPORARY, dir=key).close()  # is it writable?
        yield


def _lock(folder: Path, shown: Path, wait: bool) -> int:
    """A handle of the locked folder. Closing it unlocks the folder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise UsageError(
                f"{shown}: another defectgen is writing here; wait for it (--wait), or choose another --out"
            ) from error
        except OSError:  # a drive without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        os.close(handle)  # the process before removed the folder


def _release(key: Path) -> None:
    _held[key] -= 1
    if not _held[key]:
        del _held[key]


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Within the block, an output that cannot be created or written is the user's error, named as such.

    Raises:
        DiskFullError: the device is full.
        UsageError: permissions, a read-only drive, a name that is too long, or a file where a folder is needed.
    """
    try:
        with disk_errors(path):
            yield
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise UsageError(f"cannot write to {path}: {error.strerror}; choose another place") from error
        raise


def inside(root: Path, name: str) -> Path:
    """The path of a file that a record of ours names, below `root`. Every such path is checked here.

    Raises:
        BadInputError: it is absolute, leads out of `root`, cannot be a path, or a link is on the way.
    """
    relative = PurePosixPath(name)
    odd = relative.is_absolute() or ".." in relative.parts or not relative.parts or not {"\\", "\0"}.isdisjoint(name)
    if odd or any(len(part.encode(errors="surrogatepass")) > _LONGEST_NAME for part in relative.parts):
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
        raise BadInputError(
            f"{root}: a record names {shown!r}, which is not inside; restore the folder, or use another"
        )
    path = root
    for part in relative.parts:
        path = path / part
        try:
            linked = path.is_symlink()
        except OSError as error:  # too long as a whole
            raise BadInputError(f"{root}: a record names {name:.255}, which cannot be a file here") from error
        if linked:
            raise BadInputError(f"{path}: is a link, which could lead elsewhere; replace it with the folder or file")
    return path
