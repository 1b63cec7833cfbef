import numpy as np

from defectgen.seeding import numpy_rng


def test_keys_and_their_order_decide_the_numbers() -> None:
    first = numpy_rng(1, 2, 3).random(4)
    np.testing.assert_array_equal(first, numpy_rng(1, 2, 3).random(4))
    assert not np.allclose(first, numpy_rng(1, 3, 2).random(4))
