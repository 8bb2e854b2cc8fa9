"""Batches of few sizes."""

import jax
import numpy as np
import pytest

from opnorm.analysis import batches


def test_survivors_are_packed_into_few_sizes_of_batch(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert batches.batch_sizes(100) == (100, 25)
    assert batches.batch_sizes(256) == (256, 64, 16)
    assert batches.batch_sizes(8) == (8,)
    rows = np.arange(160)
    filled = list(batches.fill(rows, (100, 25)))
    assert [len(batch.filled) for batch in filled] == [100, 25, 25, 25]
    np.testing.assert_array_equal(
        np.concatenate([batch.rows for batch in filled]), rows
    )
    np.testing.assert_array_equal(filled[-1].filled, [*range(150, 160), *[159] * 15])


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (12, (100, 25), [25]),
        (90, (100, 25), [100]),
        (75, (100, 25), [25, 25, 25]),
        (60, (256, 64, 16), [64]),
        (73, (100, 48, 25), [48, 25]),
        (230, (100, 32, 8), [100, 100, 32]),
        (212, (100, 32, 8), [100, 100, 8, 8]),
        (0, (8,), []),
    ],
)
def test_batches_compute_few_rows_in_few_calls(count, sizes, expected) -> None:
    found = list(batches.fill(np.arange(count), sizes))
    assert [len(batch.filled) for batch in found] == expected
    rows = np.concatenate([np.arange(0), *(batch.rows for batch in found)])
    np.testing.assert_array_equal(rows, np.arange(count))


def test_few_rows_have_a_batch_that_fits(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    sizes = [batches.batch_sizes(100, count)[0] for count in range(1, 120)]
    waste = [size - count for count, size in zip(range(1, 120), sizes, strict=True)]
    assert set(sizes) == {8, 12, 16, 24, 32, 48, 64, 96, 100}
    assert min(waste[:100]) == 0
    assert all(w <= max(7, count / 2) for count, w in enumerate(waste[:100], 1))
    assert batches.batch_sizes(100, 60) == (64, 16)


def test_a_size_is_added_only_where_it_saves_many_steps(monkeypatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert batches.refit((100, 25), 12, 5000) == (100, 25, 12)
    assert batches.refit((100, 25), 212, 5000) == (100, 25, 12)
    assert batches.refit((100, 25), 12, 100) == (100, 25)
    assert batches.refit((100, 25), 0, 10**9) == (100, 25)
    assert batches.refit((100, 25), 200, 10**9) == (100, 25)
    # The size is not above the largest one.
    assert batches.refit((100, 25), 99, 10**9) == (100, 25)


def test_batches_are_multiples_of_the_devices() -> None:
    assert jax.device_count() == 8
    assert batches.batch_sizes(100) == (104, 32, 8)
    assert batches.batch_sizes(100, 12) == (16, 8)
    assert batches.refit((104, 32), 12, 5000) == (104, 32, 16)
