"""What SIGINT and SIGTERM do while the program starts, before its command line can take them.

Importing this first, as `__main__` does, gives them their exit codes and one line instead of a traceback or nothing.
"""

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # one line for all that torchrun starts
        os.write(2, b"defectgen: error: stopped before it began\n")
    os._exit(128 + number)  # nothing is open yet


def restore() -> None:
    """Give the signals back to who had them: the program, or a test that imports it."""
    while _before:
        signal.signal(*_before.popitem())


_before = (
    {number: signal.signal(number, _stop) for number in NUMBERS}
    if threading.current_thread() is threading.main_thread()  # others cannot set handlers
    else {}
)
