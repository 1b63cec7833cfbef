"""What a command prints: results on standard output, progress and warnings on standard error."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from defectgen.folders import Skipped

_PERIOD = 10.0  # seconds between plain lines of progress


class Report(Protocol):
    """Takes how far a long piece of work is, in words for people, and in values for programs."""

    def __call__(self, done: int, total: int, detail: str = "", values: Mapping[str, Any] | None = None) -> None: ...


class Console:
    """One command's output, in the form that its options ask for."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._quiet = quiet

    def result(self, values: Mapping[str, Any], text: str, *, kind: str = "summary") -> None:
        """Print a result: `values` as a JSON line of that message_type, or `text`."""
        _print(json.dumps({"message_type": kind, **values}, default=str) if self._json else text)

    def note(self, text: str) -> None:
        """Tell people how it goes."""
        if not self._quiet:
            typer.echo(f"defectgen: {text}", err=True)

    def warn(self, text: str) -> None:
        """Tell what people must know, even with --quiet."""
        typer.echo(f"defectgen: {text}", err=True)

    def skipped(self, skipped: "Sequence[Skipped]") -> None:
        """Name each input that was left out."""
        for each in skipped:
            self.warn(f"skipped {each.path}: {each.reason}")
        if skipped:
            self.warn(f"inputs skipped: {len(skipped)}")

    @contextmanager
    def progress(self, stage: str) -> Iterator[Report]:
        """A bar on a terminal, else a line every few seconds; with --json these lines are results."""
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


def duration(total: float) -> str:
    """Seconds in words: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    hours, rest = divmod(round(total), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {left:02} s" if minutes else f"{left} s"


def table(values: Mapping[str, Any]) -> str:
    """Names and values for people, a line each."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {_words(value)}" for name, value in values.items())


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return str(value)


def _print(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        # Who read the results has gone; the work goes on without. What is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _periodically(show: Callable[[int, int, str, Mapping[str, Any]], None]) -> Report:
    """`show` at the first call, then every few seconds, and at the end."""
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
        """The bar, and below it what may need more than a line."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["detail"], style="dim") for task in self.tasks if task.fields["detail"])

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task(stage, total=None, detail="")

        def report(done: int, total: int, detail: str = "", values: Mapping[str, Any] | None = None) -> None:
            progress.update(task, completed=done, total=total, detail=detail)

        yield report
