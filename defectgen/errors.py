"""The errors that a user can cause and fix, each with its exit code. The program raises no others on purpose."""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The exit codes, which scripts may rely on. README.md lists them."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    SKIPPED = 3
    BAD_INPUT = 4
    BAD_WEIGHTS = 5
    DISK_FULL = 6
    OUT_OF_MEMORY = 7
    NO_DEVICE = 8
    DEFECTS_FOUND = 9
    SIGINT = 130
    SIGTERM = 143


class UserError(Exception):
    """An error that the user can fix. Its message is one line: the file or option, what is wrong, what to do."""

    code: ClassVar[ExitCode] = ExitCode.USAGE


class UsageError(UserError):
    """Invalid options or configuration."""


class BadInputError(UserError):
    """Images, masks or folders that cannot be used."""

    code = ExitCode.BAD_INPUT


class WeightsError(UserError):
    """A model or checkpoint that is missing, corrupt or unsuitable."""

    code = ExitCode.BAD_WEIGHTS


class DiskFullError(UserError):
    """No space is left on the device to write a file."""

    code = ExitCode.DISK_FULL


class OutOfMemoryError(UserError):
    """The device or the host ran out of memory."""

    code = ExitCode.OUT_OF_MEMORY


class NoDeviceError(UserError):
    """The requested device is not available."""

    code = ExitCode.NO_DEVICE


class StoppedError(UserError):
    """The run was stopped by a signal, after its state was saved."""

    code = ExitCode.SIGINT

    def __init__(self, message: str, code: ExitCode = ExitCode.SIGINT) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]
