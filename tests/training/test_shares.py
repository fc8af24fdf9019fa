"""Which rows a process reads follows from the devices that it holds."""

import types

import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.training.shares import rows_of_process


def mesh(processes):
    """A mesh [data, model] whose devices belong to these processes."""
    devices = np.array([[types.SimpleNamespace(process_index=p) for p in row] for row in processes], object)
    return types.SimpleNamespace(
        axis_names=("data", "model"), devices=devices, shape=dict(zip(("data", "model"), devices.shape, strict=True))
    )


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 0, 1, 1], [2, 2, 3, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes read the same rows
        ([[0, 0, 1, 1]], [(0, 1), (0, 1)]),
    ],
)
def test_the_share_of_each_process(processes, expected):
    assert [rows_of_process(mesh(processes), index) for index in range(len(expected))] == expected


@pytest.mark.parametrize("processes", [[[0], [1], [0], [1]], [[0], [0], [0], [1]], [[0, 1], [0, 2], [1, 2], [1, 2]]])
def test_shares_that_are_no_equal_runs_are_refused(processes):
    with pytest.raises(InputError, match=r"--mesh gives process \d the shards \[.*\] of the data axis"):
        rows_of_process(mesh(processes), 0)
