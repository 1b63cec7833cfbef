"""Runs command lines one after another in each of several ranks, started by torchrun: a start takes seconds.

    torchrun --nproc-per-node 2 tests/ranks.py COMMANDS.json

COMMANDS.json is a list of lists of arguments. Writes `RANK.json`: the exit code of each command line and, of those that
train, the SHA-256 of each tensor that a checkpoint would hold. `["check"]` tries what the ranks exchange.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from defectgen import ranks
from defectgen.__main__ import main
from defectgen.methods.base import Method
from defectgen.methods.networks import Networks
from defectgen.training import trainer


def check() -> int:
    """The mean of gradients is that of the whole batch; and what is gathered comes in the order of one process."""
    ranks.start()
    index, count = ranks.index(), ranks.count()
    assert ranks.share(lambda: [index, bytes(3 * 2**22 + 1)]) == [0, bytes(3 * 2**22 + 1)]
    found = list(ranks.gathered(item * item for item in ranks.mine(range(23))))
    assert found == ([item * item for item in range(23)] if index == 0 else [])
    assert ranks.largest(index, -index) == [count - 1, 0]
    assert ranks.any_of(index == 1)
    assert not ranks.any_of(condition=False)
    assert float(ranks.mean(torch.tensor(float(index)))) == (count - 1) / 2
    rows, flags = ranks.joined(torch.full((2, 3), float(index)), torch.tensor([index == 1]))
    assert rows[:, 0].tolist() == [each for rank in range(count) for each in (rank, rank)]
    assert flags.tolist() == [rank == 1 for rank in range(count)]

    x = torch.arange(8 * count, dtype=torch.float32).view(4 * count, 2).sin()
    own, whole = (nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)]) for _ in range(2))
    networks = Networks(
        {"own": own}, {"own": torch.optim.SGD(own.parameters(), lr=0.5)}, averaged=(), device=torch.device("cpu")
    )
    networks.spread()  # each rank drew other weights
    whole.load_state_dict(own.state_dict())
    networks.begin()
    (own[0](x[4 * index : 4 * index + 4]).square().mean()).backward()
    if index == 1:
        own[1](x).mean().backward()  # the others have no gradient of it, and none of own[2] is there at all
    networks.step("own")
    sgd = torch.optim.SGD(whole.parameters(), lr=0.5)
    (whole[0](x).square().mean() + whole[1](x).mean() / count).backward()
    sgd.step()
    for one, other in zip(own.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert own[2].weight.grad is None
    return ranks.finish(0)


def run(commands: list[list[str]], out: Path) -> None:
    built: list[Method] = []
    module: Any = trainer
    build = module.build

    def remember(*arguments: object) -> Method:
        built.append(build(*arguments))
        return built[-1]

    module.build = remember
    codes, digests = [], {}
    for command in commands:
        codes.append(check() if command == ["check"] else main(command))
        if command[0] == "train":
            state = built[-1].networks.state()
            digests[command[2]] = {
                key: hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
                for key, value in state.items()
            }
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps({"codes": codes, "state": digests}))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    run(json.loads(path.read_text()), path.parent)
