"""The output of commands: results on standard output, progress and warnings on standard error."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from defectgen import ranks
from defectgen.text import printable

if TYPE_CHECKING:
    from defectgen.folders import Skipped

_PERIOD = 10.0  # seconds between progress lines, where there is no progress bar


class Report(Protocol):
    """A callback for progress: `detail` is text for people, `values` are data for programs (--json)."""

    def __call__(self, done: int, total: int, detail: str = "", values: Mapping[str, Any] | None = None) -> None: ...


class Console:
    """The output of one command, as set by --json and --quiet. Other ranks than 0 print nothing."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._quiet = quiet or not ranks.is_main()

    def result(self, values: Mapping[str, Any], text: str, *, kind: str = "summary") -> None:
        """Print a result: `values` as a JSON line of that message_type, or `text`."""
        _print(json.dumps({"message_type": kind, **values}, default=str) if self._json else text)

    def note(self, text: str) -> None:
        """Print information for people, unless --quiet is set."""
        if not self._quiet:
            _print(f"defectgen: {printable(text)}", err=True)

    def warn(self, text: str) -> None:
        """Print a warning, even with --quiet."""
        _print(f"defectgen: {printable(text)}", err=True)

    def skipped(self, skipped: "Sequence[Skipped]") -> None:
        """Print a warning for each skipped input, and their number."""
        for each in skipped:
            self.warn(f"skipped {each.path}: {each.reason}")
        if skipped:
            self.warn(f"inputs skipped: {len(skipped)}")

    def warnings(self, lines: Sequence[str]) -> None:
        """Print what is odd about the inputs, even with --quiet, and with --json as records, too."""
        for line in lines:
            self.warn(f"warning: {line}")
            if self._json:
                _print(json.dumps({"message_type": "warning", "message": line}), err=True)

    @contextmanager
    def progress(self, stage: str) -> Iterator[Report]:
        """Show progress: a bar on a terminal, else a line every few seconds. With --json these lines are results."""
        if self._quiet:
            yield lambda done, total, detail="", values=None: None
        elif self._json:
            yield _periodically(
                lambda done, total, _detail, values: self.result(
                    {"stage": stage, "done": done, "total": total, **values}, "", kind="status"
                )
            )
        elif sys.stderr.isatty():
            with _bar(stage) as report:
                yield report
        else:
            yield _periodically(
                lambda done, total, detail, _values: self.note(
                    f"{stage} {done}/{total}{', ' if detail else ''}{detail}"
                )
            )


def table(values: Mapping[str, Any]) -> str:
    """Format names and values for people, one per line."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {_format(value)}" for name, value in values.items())


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_format, value))
    return str(value)


def _print(text: str, *, err: bool = False) -> None:
    if not ranks.is_main():
        return
    try:
        typer.echo(text, err=err)
    except BrokenPipeError:
        # The reader is gone. Continue without it, and discard further output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())


def _periodically(show: Callable[[int, int, str, Mapping[str, Any]], None]) -> Report:
    """A report that calls `show` the first time, then every few seconds, and at the end."""
    last = -_PERIOD

    def report(done: int, total: int, detail: str = "", values: Mapping[str, Any] | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PERIOD or done == total:
            last = now
            show(done, total, detail, values or {})

    return report


@contextmanager
def _bar(stage: str) -> Iterator[Report]:
    from rich.console import Console as Terminal
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Bar(Progress):
        """A progress bar with the detail text below it, which may need several lines."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["detail"], style="dim") for task in self.tasks if task.fields["detail"])

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task(stage, total=None, detail="")

        def report(done: int, total: int, detail: str = "", values: Mapping[str, Any] | None = None) -> None:
            progress.update(task, completed=done, total=total, detail=detail)

        yield report
