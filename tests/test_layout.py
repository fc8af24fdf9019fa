"""What a layout says of its histories."""

import numpy as np
import pytest

from spectran_jax.layout import SequenceLayout


@pytest.mark.parametrize(
    ("segment", "want"),
    [
        ([1, 1, 2, 2, 2, 0], [0, 1, 0, 0, 1, 0]),
        ([1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]),
        ([0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 0, 1]),  # padding on the left, and an end at the row's
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
        ([[1, 1, 1], [1, 1, 0]], [[0, 0, 1], [0, 1, 0]]),  # a full row, and the next one's first history
    ],
)
def test_last_positions_end_every_history(segment, want):
    segment = np.atleast_2d(np.array(segment, np.int32))
    layout = SequenceLayout(segment > 0, segment, np.zeros_like(segment))
    np.testing.assert_array_equal(layout.last_positions(), np.atleast_2d(np.array(want, bool)))
