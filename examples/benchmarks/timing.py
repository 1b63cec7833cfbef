"""Timings of calls that take turns, so that a change of the machine's speed meets them all alike."""

import statistics
import time
from collections.abc import Callable


def medians(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Milliseconds, each call in turn, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}
