"""Timings of alternating calls, so that changes in the machine's speed affect all of them equally."""

import statistics
import time
from collections.abc import Callable


def medians(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """The median time of each call over `repeat` alternating runs, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}
