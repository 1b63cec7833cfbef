import pytest

from defectgen import errors
from defectgen.errors import ExitCode, StoppedError, UserError


def test_exit_codes_never_change() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "INTERNAL": 1,
        "USAGE": 2,
        "SKIPPED": 3,
        "BAD_INPUT": 4,
        "BAD_WEIGHTS": 5,
        "DISK_FULL": 6,
        "OUT_OF_MEMORY": 7,
        "NO_DEVICE": 8,
        "DEFECTS_FOUND": 9,
        "SIGINT": 130,
        "SIGTERM": 143,
    }


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.BadInputError, 4),
        (errors.WeightsError, 5),
        (errors.DiskFullError, 6),
        (errors.OutOfMemoryError, 7),
        (errors.NoDeviceError, 8),
        (errors.StoppedError, 130),
    ],
)
def test_each_kind_is_a_user_error_with_its_code(kind: type[UserError], code: int) -> None:
    error = kind("a.png: cut short")
    assert isinstance(error, UserError)
    assert error.code == code
    assert str(error) == "a.png: cut short"


def test_a_stop_has_the_code_of_its_signal() -> None:
    assert StoppedError("stopped", ExitCode.SIGTERM).code == 143
    assert StoppedError("stopped").code == 130
