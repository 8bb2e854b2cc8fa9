"""Batches as a pure function of the seed and the step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opnorm import data


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 50))
def test_an_epoch_visits_every_example_once(seed: int, epoch: int, size: int) -> None:
    order = data.epoch_permutation(seed, epoch, size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_order_is_the_one_that_older_runs_had() -> None:
    # These numbers are recorded, since a change would break resuming.
    np.testing.assert_array_equal(
        data.epoch_permutation(3, 1, 10), [0, 6, 2, 1, 3, 7, 4, 9, 8, 5]
    )


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(data.epoch_permutation(seed, epoch, 20))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_steps_cut_epochs_into_whole_batches() -> None:
    assert data.steps_per_epoch(4, 10) == 2
    batches = [data.batch_indices(7, step, 4, 10) for step in range(4)]
    for epoch in (0, 1):
        np.testing.assert_array_equal(
            np.concatenate(batches[2 * epoch : 2 * epoch + 2]),
            data.epoch_permutation(7, epoch, 10)[:8],
        )


def test_a_step_gives_the_same_batch_whatever_came_before() -> None:
    run = [data.batch_indices(0, step, 3, 7).copy() for step in range(30)]
    data.epoch_permutation.cache_clear()
    np.testing.assert_array_equal(data.batch_indices(0, 17, 3, 7), run[17])


def test_every_example_is_used_though_some_are_dropped_in_each_epoch() -> None:
    used = {int(i) for step in range(20) for i in data.batch_indices(0, step, 4, 7)}
    assert used == set(range(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 2, 4), "seed is -1"),
        ((0, -1, 2, 4), "step is -1"),
        ((0, 0, 0, 4), "batch_size is 0"),
        ((0, 0, 5, 4), "batch_size is 5"),
    ],
)
def test_rejects_arguments_out_of_range(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.batch_indices(*arguments)
