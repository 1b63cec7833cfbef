"""Tensors of a model carried over to other names."""

import torch

from defectgen.nn.slots import Names, Slots, carried

BEFORE: Names = {"domains": ["normal", "a", "b"], "categories": ["a", "b"], "inputs": ["gray"]}
NOW: Names = {"domains": ["normal", "new", "b"], "categories": ["new", "b"], "inputs": ["r", "g", "b"]}


def test_known_names_keep_their_parts_and_new_ones_get_the_mean_of_the_defects() -> None:
    rows = torch.tensor([[9.0], [1.0], [3.0]])
    given = {"x": rows, "y.0.z": rows[0], "y.1.z": rows[1], "y.2.z": rows[2], "other": rows}
    made = carried(given, [Slots("x", "domains"), Slots(r"y\.(\d+)\..*", "domains")], BEFORE, NOW)
    assert made["x"].flatten().tolist() == [9, 2, 3]
    assert [made[f"y.{i}.z"].item() for i in range(3)] == [9, 2, 3]
    assert torch.equal(made["other"], rows)


def test_parts_in_blocks_and_beside_others() -> None:
    row = torch.arange(6.0)
    made = carried(
        {"blocks": row, "first": row[None], "last": row[None], "middle": row},
        [
            Slots("blocks", "domains"),
            Slots("first", "categories", axis=1, where="start"),
            Slots("last", "categories", axis=1, where="end"),
            Slots("middle", "categories", where=2),
        ],
        BEFORE,
        NOW,
    )
    assert made["blocks"].tolist() == [0, 1, 3, 4, 4, 5]
    assert made["first"].tolist() == [[0.5, 1, 2, 3, 4, 5]]
    assert made["last"].tolist() == [[0, 1, 2, 3, 4.5, 5]]
    assert made["middle"].tolist() == [0, 1, 2.5, 3, 4, 5]


def test_a_layer_sees_equal_colors_as_it_saw_gray() -> None:
    made = carried({"x": torch.tensor([[6.0, 5.0]])}, [Slots("x", "inputs", axis=1, where="start")], BEFORE, NOW)
    assert made["x"].tolist() == [[2, 2, 2, 5]]
    back = carried(made, [Slots("x", "inputs", axis=1, where="start")], NOW, BEFORE)
    assert back["x"].tolist() == [[6, 5]]
