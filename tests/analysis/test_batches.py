"""Batches of few sizes."""

import jax
import numpy as np

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


def test_batches_are_multiples_of_the_devices() -> None:
    assert jax.device_count() == 8
    assert batches.batch_sizes(100) == (104, 32, 8)
