"""Pooling against windows taken one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm.models import layers


def windows(x, size, stride, padding):
    """Yields the place and the entries of every window of (B, H, W, C)."""
    wide = [(0, 0), *np.broadcast_to(padding, (2, 2)).tolist(), (0, 0)]
    x = np.pad(np.asarray(x, np.float64), wide, constant_values=-np.inf)
    for i in range((x.shape[1] - size) // stride + 1):
        for j in range((x.shape[2] - size) // stride + 1):
            rows = slice(i * stride, i * stride + size)
            columns = slice(j * stride, j * stride + size)
            yield i, j, x[:, rows, columns]


def pooled(x, size, stride, padding, reduce):
    places = list(windows(x, size, stride, padding))
    out = np.empty((len(x), places[-1][0] + 1, places[-1][1] + 1, x.shape[3]))
    for i, j, entries in places:
        out[:, i, j] = reduce(entries, axis=(1, 2))
    return out


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 1)])
def test_windows_of_two_do_not_overlap_and_drop_an_odd_last_row(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    largest = pooled(x, 2, 2, 0, np.max)
    np.testing.assert_array_equal(layers.max_pool(jnp.asarray(x)), largest)
    average = pooled(x, 2, 2, 0, np.mean)
    np.testing.assert_allclose(layers.average_pool(jnp.asarray(x)), average, rtol=1e-5)

    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.asarray(x))
    kept = gradient[:, : shape[1] // 2 * 2, : shape[2] // 2 * 2]
    assert gradient.sum() == largest.size
    np.testing.assert_array_equal(pooled(np.asarray(kept), 2, 2, 0, np.max), 1)


@pytest.mark.parametrize("shape", [(2, 6, 7, 2), (1, 5, 4, 1), (1, 1, 2, 1)])
def test_overlapping_windows_of_three_take_their_largest_entry(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32) - 3
    found = layers.overlapping_max_pool(jnp.asarray(x))
    np.testing.assert_array_equal(found, pooled(x, 3, 2, 1, np.max))


@pytest.mark.parametrize(
    ("padding", "shape", "widths"),
    [
        # TensorFlow's SAME pads an even side below or to the right only.
        ("SAME", (2, 6, 7, 2), ((0, 1), (1, 1))),
        ("SAME", (1, 1, 2, 1), ((1, 1), (0, 1))),
        ("VALID", (2, 6, 7, 2), 0),
        ("VALID", (1, 3, 4, 1), 0),
    ],
)
def test_overlapping_windows_have_the_padding_of_tensorflow(padding, shape, widths):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32) - 3
    found = layers.overlapping_max_pool(jnp.asarray(x), padding=padding)
    np.testing.assert_array_equal(found, pooled(x, 3, 2, widths, np.max))


def test_overlapping_windows_amplify_a_peak_that_four_of_them_share_by_two():
    for padding, size in (("SAME", 6), ("VALID", 5)):
        x = np.zeros((1, size, size, 1), np.float32)
        x[0, 2, 2] = 1
        found = layers.overlapping_max_pool(jnp.asarray(x), padding=padding)
        assert np.linalg.norm(found) == 2


@pytest.mark.parametrize(
    ("pool", "window"),
    [(layers.max_pool, (2, 2, 0)), (layers.overlapping_max_pool, (3, 2, 1))],
)
@pytest.mark.parametrize("image", ["constant", "ties", "distinct"])
def test_derivatives_take_one_largest_entry_of_each_window(image, pool, window):
    shape = (1, 5, 6, 1)
    rng = np.random.default_rng(2)
    x = {
        "constant": np.zeros(shape),
        "ties": rng.integers(0, 2, shape),
        "distinct": rng.normal(size=shape),
    }[image].astype(np.float32)
    backward, forward = jacobians(pool, jnp.asarray(x))
    np.testing.assert_array_equal(forward, backward)
    # One entry of each row is 1, and the image is largest there.
    assert np.all(np.sort(backward, axis=1) == np.eye(x.size)[-1])
    chosen = x.ravel()[np.argmax(backward, axis=1)]
    np.testing.assert_array_equal(chosen, pooled(x, *window, np.max).ravel())


@functools.partial(jax.jit, static_argnums=0)
def jacobians(pool, x):
    """Computes Jacobians by transposed products under vmap and by forward ones."""
    out, pull = jax.vjp(pool, x)
    left = jnp.eye(out.size).reshape(-1, *out.shape)
    right = jnp.eye(x.size).reshape(-1, *x.shape)
    forward = jax.vmap(lambda v: jax.jvp(pool, (x,), (v,))[1])
    rows = jax.vmap(lambda u: pull(u)[0])(left).reshape(out.size, -1)
    return rows, forward(right).reshape(x.size, -1).T


def test_not_a_number_comes_out_of_every_window_it_is_in():
    x = np.zeros((1, 5, 5, 1), np.float32)
    for place in np.ndindex(5, 5):
        x[0, *place, 0] = np.nan
        for pool, window in (
            (layers.max_pool, (2, 2, 0)),
            (layers.overlapping_max_pool, (3, 2, 1)),
        ):
            found = np.isnan(pool(jnp.asarray(x)))
            touched = [np.isnan(w).any() for *_, w in windows(x, *window)]
            np.testing.assert_array_equal(found.ravel(), touched)
        x[0, *place, 0] = 0
