"""Turns trained models of a `weights.toml` into ones to ship: weights in float16, at half the size.

    python examples/ship.py NAME [NAME ...] [--weights weights.toml]

Writes each model's file again, and its SHA-256 and time in the list: of several that fit, the last one is the default.
Fails if a file has more than 5 MB, or all of the list more than 25 MB.
"""

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from defectgen import files
from defectgen.models import registry
from defectgen.models.model import save_half

EACH, ALL = 5_000_000, 25_000_000  # bytes


def ship(name: str, weights: Path) -> int:
    """Write the model of this name in float16, and return its size in bytes."""
    entry = registry.find(name=name, files=[weights])
    registry.verify(entry)
    save_half(entry.file, entry.file)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    registry.add(entry.model_copy(update={"sha256": files.sha256(entry.file), "created": now}), weights)
    return entry.file.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parents[1] / registry.NAME)
    options = parser.parse_args()
    sizes = {name: ship(name, options.weights) for name in options.names}
    total = sum(entry.file.stat().st_size for entry in registry.read(options.weights))
    for name, size in sizes.items():
        print(f"{name}: {size / 1e6:.2f} MB")
    print(f"all of {options.weights}: {total / 1e6:.2f} MB")
    if total > ALL or max(sizes.values()) > EACH:
        sys.exit("too large to ship")


if __name__ == "__main__":
    main()
