"""Projections onto a ball and a box, against bisection in float64 NumPy."""

import functools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg

P = (1.0, 2.0, math.inf)
SHAPE = (3, 5)


def numbers(least, most):
    # The numbers fit into float32, so that every dtype gets the same numbers.
    return st.floats(least, most, width=32).map(lambda x: 0.0 if abs(x) < 1e-4 else x)


def arrays(least, most, shape=SHAPE):
    return hnp.arrays(np.float64, shape, elements=numbers(least, most))


cases = hypothesis.given(
    x=arrays(-20, 20),
    low=arrays(-2, 0),
    high=arrays(0, 2),
    radius=arrays(0, 4, SHAPE[:1]),
)
settings = hypothesis.settings(max_examples=25, deadline=None)


@functools.partial(jax.jit, static_argnums=1)
def compiled(x, p, radius, low, high):
    return linalg.project_ball_box(x, p, radius, low, high)


def project(x, p, radius, low, high, dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        given = [jnp.asarray(a, dtype) for a in (x, radius, low, high)]
        return np.asarray(compiled(given[0], p, *given[1:]))


def nearest(x, p, radius, low, high):
    """The projection of one example, by 200 halvings of the multiplier's interval."""

    def at(t):
        if p == 1:
            return np.clip(np.sign(x) * np.maximum(np.abs(x) - t, 0), low, high)
        if p == 2:
            return np.clip(x / (1 + t), low, high)
        return np.clip(np.clip(x, low, high), -radius, radius)

    if np.linalg.norm(at(0.0), p) <= radius:
        return at(0.0)
    # The multiplier for p = 2 has no scale, so its logarithm is halved.
    inside, outside = (np.abs(x).max(), 0.0) if p == 1 else (1e30, 1e-30)
    for _ in range(200):
        middle = (inside + outside) / 2 if p == 1 else math.sqrt(inside * outside)
        short = np.linalg.norm(at(middle), p) <= radius
        inside, outside = (middle, outside) if short else (inside, middle)
    return at(inside)


def farthest(g, p, radius, low, high):
    """``max <g, z>`` over ball and box, by a greedy choice of the entries."""
    size, room = np.abs(g), np.where(g > 0, high, -low)
    if p == math.inf:
        return np.sum(size * np.minimum(room, radius))
    if p == 1:
        total = 0.0
        for i in np.argsort(-size):
            step = min(room[i], radius)
            total, radius = total + size[i] * step, radius - step
        return total
    least, most = 0.0, 1e12
    for _ in range(200):
        middle = (least + most) / 2
        short = np.linalg.norm(np.minimum(middle * size, room)) < radius
        least, most = (middle, most) if short else (least, middle)
    return np.sum(size * np.minimum(least * size, room))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", P)
@settings
@cases
def test_it_is_the_point_that_bisection_finds(p, dtype, x, low, high, radius) -> None:
    found = project(x, p, radius, low, high, dtype)
    expected = [nearest(x[i], p, radius[i], low[i], high[i]) for i in range(3)]
    # The float32 multiplier is known to a digit of the largest entry.
    np.testing.assert_allclose(found, expected, atol=20 * 4 * np.finfo(dtype).eps)
    assert np.all(found >= low)
    assert np.all(found <= high)
    length = np.linalg.norm(found.astype(np.float64), p, axis=1)
    assert np.all(length <= radius * (1 + 8 * np.finfo(dtype).eps))


@pytest.mark.parametrize("p", P)
@settings
@cases
def test_nothing_in_the_set_is_nearer(p, x, low, high, radius) -> None:
    # y is the projection onto a convex set if and only if <x - y, z - y> <= 0 for all
    # z in the set.
    y = project(x, p, radius, low, high)
    for i in range(len(x)):
        gap = x[i] - y[i]
        reach = farthest(gap, p, radius[i], low[i], high[i])
        assert reach - gap @ y[i] <= 1e-10 * (1 + x[i] @ x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_segment_between_kinks_is_no_exception(dtype) -> None:
    # Solvers that sort the kinks of the length are easily off by one segment here.
    x = np.array([0.0447, 0.2959])
    found = project([[-3.733, 2.843]], 1.0, 0.5, [-x], [1 - x], dtype)
    np.testing.assert_allclose(found, [[-0.0447, 0.4553]], atol=1e-6)
    assert np.abs(found.astype(np.float64)).sum() <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("p", P)
def test_points_of_both_sets_are_returned_as_they_are(p) -> None:
    x = np.random.default_rng(0).uniform(-0.1, 0.1, SHAPE).astype(np.float32)
    low, high = np.full(SHAPE, -0.1), np.full(SHAPE, 0.1)
    found = project(x, p, np.full(3, 0.5), low, high, np.float32)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("p", P)
def test_a_ball_larger_than_the_box_only_clips(p) -> None:
    x = np.random.default_rng(1).uniform(-9, 9, SHAPE)
    low, high = np.full(SHAPE, -0.25), np.full(SHAPE, 0.5)
    found = project(x, p, np.full(3, 2.6), low, high)
    np.testing.assert_array_equal(found, np.clip(x, low, high))


@pytest.mark.parametrize("p", P)
def test_a_box_larger_than_the_ball_changes_nothing(p) -> None:
    x = np.random.default_rng(2).uniform(-9, 9, SHAPE)
    far = np.full(SHAPE, 9.0)
    found = project(x, p, np.full(3, 1.5), -far, far)
    with jax.enable_x64(True):
        ball = linalg.project_ball(jnp.asarray(x), p, 1.5)
    np.testing.assert_allclose(found, ball, atol=1e-13)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_small_radius_is_not_lost_in_large_entries(p, scale) -> None:
    x = np.array([[1, 0.5, -1, 0.25, 1]] * 3)
    # Some of the largest entries have less room than their share of the radius.
    high = np.array([[1, 1, 1, 1, 1], [1e-9, 1, 1, 1, 1e-8], [1e-9, 1, 1, 1, 1e-9]])
    low = -np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 2e-9, 1, 1]])
    for radius in (1e-4, 1e-6, 3e-8):
        given = (scale * x, p, np.full(3, scale * radius), scale * low, scale * high)
        found = project(*given, np.float32) / scale
        expected = [nearest(x[i], p, radius, low[i], high[i]) for i in range(len(x))]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * radius)


@pytest.mark.parametrize("p", P)
def test_without_radius_or_room_nothing_moves(p) -> None:
    x = np.random.default_rng(3).uniform(-9, 9, SHAPE)
    still, far = np.zeros(SHAPE), np.full(SHAPE, 9.0)
    nothing = project(x, p, np.zeros(3), -far, far)
    np.testing.assert_array_equal(nothing, still)
    shut = project(x, p, np.full(3, 1.5), still, still)
    np.testing.assert_array_equal(shut, still)
    origin = project(still, p, np.zeros(3), -far, far)
    np.testing.assert_array_equal(origin, still)


def test_many_entries_keep_the_budget_in_float32() -> None:
    x = np.random.default_rng(4).normal(size=(2, 3072)).astype(np.float32)
    room = np.random.default_rng(5).uniform(size=x.shape).astype(np.float32)
    expected = nearest(x[0].astype(np.float64), 1.0, 12.0, -room[0], 1 - room[0])
    found = project(x, 1.0, np.full(2, 12.0), -room, 1 - room, np.float32)
    np.testing.assert_allclose(found[0], expected, atol=2e-6)
    length = np.abs(found.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(length, 12.0, rtol=2e-5)
    assert np.all(length <= 12.0 * (1 + 1e-6))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.1, 1.0, "low is 0.1; it must be at most 0"),
        (-1.0, -0.5, "high is -0.5; it must be at least 0"),
        (np.eye(2, 3), 1.0, "low is 1.0"),
        (-jnp.ones((2, 3)), -jnp.eye(2, 3), "high is -1.0"),
    ],
)
def test_boxes_without_zero_are_refused(low, high, message) -> None:
    with pytest.raises(ValueError, match=message):
        linalg.project_ball_box(jnp.ones((2, 3)), 2.0, 1.0, low, high)


@pytest.mark.parametrize(
    ("p", "radius", "message"),
    [(3.0, 1.0, "p is 3; it must be 1, 2 or inf"), (1.0, -1.0, "radius is -1")],
)
def test_bad_arguments_are_refused_by_name(p, radius, message) -> None:
    with pytest.raises(ValueError, match=message):
        linalg.project_ball_box(jnp.zeros((2, 3)), p, radius, -1.0, 1.0)
