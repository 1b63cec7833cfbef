"""The entry point of `defectgen` and `python -m defectgen`. Reports each error as one line and an exit code."""

from defectgen import signals  # isort: skip  # first: the other imports take a while

import errno
import io
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import typer

from defectgen import ranks
from defectgen.cli import app
from defectgen.cli.options import Switches
from defectgen.errors import ExitCode, UserError
from defectgen.text import printable

signals.restore()

# Older versions of Typer take this class from click, newer ones from a bundled copy. This finds either.
_CommandLineError: Any = typer.BadParameter.__base__


_SHARED = ("train", "synthesize", "transfer", "compose", "evaluate", "inspect")
"""The commands whose work several ranks share. Rank 0 alone runs the others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments`, or `sys.argv[1:]`, and return the exit code."""
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    ranks.leave(code)
    return code


def _run(arguments: list[str]) -> int:
    # --json and --debug also set themselves here when parsed, but parsing ends at the first invalid option.
    switches = Switches(
        command=shlex.join(["defectgen", *arguments]),
        json="--json" in arguments,
        debug="--debug" in arguments,
    )
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller; else the next file would be opened in its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that the terminal cannot encode
    try:
        with _stop_signals():
            command = next((each for each in arguments if not each.startswith("-")), "")
            if command in _SHARED and not {"--help", "-h"} & {*arguments}:
                ranks.start()
            elif ranks.of_environment().index:
                return ExitCode.OK
            code = int(app(arguments, prog_name="defectgen", standalone_mode=False, obj=switches) or ExitCode.OK)
            return ranks.finish(code)
    except UserError as error:
        return _fail(switches, error.code, str(error))
    except _CommandLineError as error:
        command = error.ctx.command_path if error.ctx else "defectgen"
        return _fail(switches, ExitCode.USAGE, f"{error.format_message()} (see {command} --help)")
    except SystemExit as stop:
        if stop.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
            return _fail(switches, ExitCode(stop.code), "stopped; run the same command with --resume to continue")
        return int(stop.code or ExitCode.OK)  # raised by Typer when the reader of its output is gone
    except MemoryError:
        return _fail(switches, ExitCode.OUT_OF_MEMORY, "out of memory; use a smaller --batch-size or fewer --workers")
    except ImportError as error:
        # Usually opencv-python in place of the headless build, on a machine without a display.
        if "cannot open shared object file" not in str(error):
            return _fail(switches, ExitCode.INTERNAL, str(error))
        advice = "install libgl1 and libglib2.0-0, or opencv-python-headless instead of opencv-python"
        return _fail(switches, ExitCode.USAGE, f"{error}; {advice}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space and run again with --resume"
            return _fail(switches, ExitCode.DISK_FULL, f"{error.filename or 'disk'}: {error.strerror}; {advice}")
        return _fail(switches, ExitCode.INTERNAL, _unexpected(error))
    except Exception as error:
        return _fail(switches, ExitCode.INTERNAL, _unexpected(error))


def _unexpected(error: Exception) -> str:
    return f"{type(error).__name__}: {error} (--debug shows the traceback)"


def _fail(switches: Switches, code: ExitCode, message: str) -> int:
    """Print the error as one line; of several ranks only one does. Called from within an exception handler."""
    error = sys.exc_info()[1]
    assert error is not None
    said = ranks.end(error, code, message)
    if said is None:
        return int(code)
    message = printable(re.sub(r"\s*\n\s*", " ", said.strip()))
    with suppress(OSError):  # standard error is full or gone; the code says it all the same
        if switches.debug:
            traceback.print_exc()
        typer.echo(f"defectgen: error: {message}", err=True)
        if switches.json:
            record = {"message_type": "exit_error", "code": int(code), "message": message}
            typer.echo(json.dumps(record), err=True)
    return int(code)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """On SIGINT and SIGTERM raise SystemExit with the matching exit code, so that open files are closed."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(ExitCode.SIGINT if number == signal.SIGINT else ExitCode.SIGTERM)

    before = {number: signal.signal(number, stop) for number in signals.NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
