"""What can go wrong for a user, each kind with its exit code. Nothing else ends the program on purpose."""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The codes that scripts may rely on; README.md lists them."""

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
    """A failure that the user can mend. Its text is one line: what is wrong, in which file, what to do."""

    code: ClassVar[ExitCode] = ExitCode.USAGE


class UsageError(UserError):
    """Wrong options or configuration."""


class BadInputError(UserError):
    """Images, masks or folders that cannot be used."""

    code = ExitCode.BAD_INPUT


class WeightsError(UserError):
    """A model or checkpoint that is missing, corrupt or unfit."""

    code = ExitCode.BAD_WEIGHTS


class DiskFullError(UserError):
    """No room left where something was to be written."""

    code = ExitCode.DISK_FULL


class OutOfMemoryError(UserError):
    """The device ran out of memory."""

    code = ExitCode.OUT_OF_MEMORY


class NoDeviceError(UserError):
    """The device asked for is not there."""

    code = ExitCode.NO_DEVICE


class StoppedError(UserError):
    """Stopped by a signal, with everything saved."""

    code = ExitCode.SIGINT

    def __init__(self, message: str, code: ExitCode = ExitCode.SIGINT) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]
