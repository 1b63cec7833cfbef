"""Damaged files, as broken disks, cut downloads and bad cables make them; the same ones each time."""

from collections.abc import Iterator

import numpy as np

_HEAD = 512  # bytes at the start, where headers are: half of the damage is there


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged versions of `data`: with flipped bits, replaced, inserted or swapped bytes, or no end."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at, other = (
                int(rng.integers(min(len(damaged), end)))
                for end in (_HEAD if rng.random() < 0.5 else len(damaged), len(damaged))
            )
            kind = rng.choice(["flip", "replace", "insert", "swap", "cut"], p=[0.3, 0.3, 0.15, 0.15, 0.1])
            if kind == "flip":
                damaged[at] ^= 1 << int(rng.integers(8))
            elif kind == "replace":
                damaged[at] = int(rng.integers(256))
            elif kind == "insert":
                damaged[at:at] = rng.bytes(int(rng.integers(1, 5)))
            elif kind == "swap":
                damaged[at], damaged[other] = damaged[other], damaged[at]
            else:
                del damaged[max(at, 1) :]
        yield bytes(damaged)
