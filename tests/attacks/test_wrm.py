"""WRM on losses whose penalised maximiser is known exactly."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks
from opnorm.attacks.wrm import residual, surrogate, wrm

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(6, 3))
SLOPES = np.array([0.7, -1.1, 0.4])
W = np.array([0.6, -0.3, 0.2, -0.5, 0.4, 0.3])
W /= np.linalg.norm(W)


def linear(x):
    return x @ jnp.asarray(MATRIX, x.dtype)


def weighted(logits, labels):
    return logits @ jnp.asarray(SLOPES, logits.dtype) * (1 + labels)


def identity(x):
    return x


def points(batch=3, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.3, 0.7, (batch, 6)))


def two_classes(length, margin, x):
    """Logits of two classes whose margin is ``margin`` at the points."""

    def f(z):
        m = margin + length * (z - x) @ jnp.asarray(W, z.dtype)
        return jnp.stack([m / 2, -m / 2], axis=1)

    return f


@pytest.mark.parametrize("num_steps", [0, 1, 15])
def test_a_linear_loss_is_maximised_in_the_first_move(num_steps) -> None:
    with jax.enable_x64(True):
        x, labels = points(), jnp.array([0, 1, 2])
        slope = MATRIX @ SLOPES
        expected = x + np.outer([1, 2, 3], slope) / (2 * 1.7)
        for price in ({"gamma": 1.7}, {"penalty": 3.4}):
            attack = wrm(num_steps=num_steps, loss=weighted, **price)
            found = attack(linear, x, labels)
            np.testing.assert_allclose(found, expected, atol=1e-14)
            left = residual(linear, x, labels, found, loss=weighted, **price)
            np.testing.assert_allclose(left, 0, atol=1e-14)
            value = surrogate(linear, x, labels, found, loss=weighted, **price)
            clean = (np.asarray(x) @ slope) * [1, 2, 3]
            # The gain of slope g at price gamma is ||g||^2 / (4 gamma).
            gain = np.array([1, 2, 3]) ** 2 * (slope @ slope) / (4 * 1.7)
            np.testing.assert_allclose(value, clean + gain, atol=1e-13)


def test_a_quadratic_loss_has_its_closed_form() -> None:
    curvature = np.diag([0.5, -1.0, 0.3, 0.0, -0.2, 0.6])
    slope = np.array([0.2, -0.1, 0.3, 0.0, 0.4, -0.5])

    def quadratic(logits, labels):
        del labels
        bend = jnp.sum(logits * (logits @ jnp.asarray(curvature)), axis=1) / 2
        return logits @ jnp.asarray(slope) + bend

    with jax.enable_x64(True):
        x, labels, gamma = points(), jnp.zeros(3, int), 1.2
        attack = wrm(gamma=gamma, num_steps=300, loss=quadratic)
        found = attack(identity, x, labels)
        gradient = slope + np.asarray(x) @ curvature
        inverse = np.linalg.inv(2 * gamma * np.eye(6) - curvature)
        np.testing.assert_allclose(found, x + gradient @ inverse, atol=1e-9)


@pytest.mark.parametrize(("length", "margin", "reach"), [(1, 0.5, 0.3), (3, 1, 0.3)])
def test_two_class_cross_entropy_ends_at_its_fixed_point(length, margin, reach) -> None:
    tau = 0.0
    for _ in range(500):
        tau = reach * length / (1 + math.exp(margin - length * tau))
    with jax.enable_x64(True):
        x, labels = points(), jnp.zeros(3, int)
        f = two_classes(length, margin, x)
        found = wrm(penalty=1 / reach, num_steps=400)(f, x, labels)
        np.testing.assert_allclose(found - x, [-tau * W] * 3, atol=1e-6)
        # Sixteen evaluations, as published.
        early = wrm(penalty=1 / reach)(f, x, labels)
        way = {1: 0.12197, 3: 0.615}[length]
        moved = np.linalg.norm(early - x, axis=1)
        np.testing.assert_allclose(moved, way, atol=6e-4 if length == 3 else 6e-6)


def test_the_residual_bounds_the_distance_to_the_maximiser() -> None:
    with jax.enable_x64(True):
        x, labels, penalty = points(), jnp.zeros(3, int), 1 / 0.3
        f = two_classes(3, 1, x)
        best = wrm(penalty=penalty, num_steps=3000)(f, x, labels)
        before = math.inf
        for num_steps in (0, 5, 15, 60):
            found = wrm(penalty=penalty, num_steps=num_steps)(f, x, labels)
            left = residual(f, x, labels, found, penalty=penalty)
            away = np.linalg.norm(found - best, axis=1)
            # e L = 0.3 * 3^2 / 4.
            assert np.all(away <= left / (1 - 0.675) + 1e-9)
            assert np.all(left < before)
            before = left


def test_the_clean_surrogate_is_the_loss_and_the_ascent_raises_it() -> None:
    with jax.enable_x64(True):
        x, labels = points(), jnp.array([0, 1, 2])
        clean = surrogate(linear, x, labels, x, gamma=3.0)
        np.testing.assert_array_equal(clean, attacks.cross_entropy(linear(x), labels))
        found = wrm(gamma=3.0)(linear, x, labels)
        assert np.all(surrogate(linear, x, labels, found, gamma=3.0) > clean + 1e-3)


def test_the_surrogates_gradient_is_that_of_the_loss_at_the_fixed_point() -> None:
    x, labels = points().astype(jnp.float32), jnp.array([0, 1, 2])
    found = wrm(gamma=3.0)(linear, x, labels)

    def total(weight):
        return surrogate(
            lambda z: weight * linear(z), x, labels, found, gamma=3.0
        ).sum()

    def loss(weight):
        return attacks.cross_entropy(weight * linear(found), labels).sum()

    np.testing.assert_allclose(jax.grad(total)(1.3), jax.grad(loss)(1.3), rtol=1e-6)


def test_points_stay_in_bounds_only_where_there_are_any() -> None:
    x, labels = points().astype(jnp.float32), jnp.array([0, 1, 2])
    options = {"gamma": 0.5, "loss": weighted}
    free = wrm(**options)(linear, x, labels)
    assert np.min(free) < 0
    assert np.max(free) > 1
    found = wrm(bounds=(0.0, 1.0), **options)(linear, x, labels)
    np.testing.assert_allclose(found, jnp.clip(free, 0, 1), atol=1e-6)
    left = residual(linear, x, labels, found, bounds=(0.0, 1.0), **options)
    np.testing.assert_allclose(left, 0, atol=1e-5)
    assert np.all(residual(linear, x, labels, found, **options) > 0.1)


def test_each_example_has_its_own_price_and_it_may_be_traced() -> None:
    x, labels = points().astype(jnp.float32), jnp.array([0, 1, 2])
    gammas = jnp.array([0.5, 2.0, 8.0])

    @jax.jit
    def run(gamma):
        return wrm(gamma=gamma)(linear, x, labels)

    found = run(gammas)
    for i in range(3):
        alone = run(gammas[i])[i]
        np.testing.assert_allclose(found[i], alone, atol=1e-6)


def test_examples_do_not_depend_on_each_other() -> None:
    x, labels = points(5).astype(jnp.float32), jnp.arange(5) % 3
    attack = wrm(gamma=1.0)
    whole = attack(linear, x, labels)
    order = np.array([3, 0, 4, 2, 1])
    permuted = attack(linear, x[order], labels[order])
    np.testing.assert_allclose(permuted, whole[order], atol=1e-6)
    alone = attack(linear, x[2:3], labels[2:3])
    np.testing.assert_allclose(alone, whole[2:3], atol=1e-6)


def test_a_start_changes_where_the_gradient_is_taken_first() -> None:
    with jax.enable_x64(True):
        x, labels = points(), jnp.zeros(3, int)
        f = two_classes(3, 1, x)
        start = x - 0.2 * W
        found = wrm(penalty=2.0, num_steps=0)(f, x, labels, start=start)
        # Margin 0.4 there: the gradient of the cross-entropy has length 3 sigma(-0.4).
        way = 0.5 * 3 / (1 + math.exp(0.4))
        np.testing.assert_allclose(found - x, [-way * W] * 3, atol=1e-12)


def constant(value, classes, z):
    return jnp.sum(z) * 0 + jnp.full((len(z), classes), value)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_constant_and_broken_networks_move_nothing(value, classes) -> None:
    x, labels = points().astype(jnp.float32), jnp.zeros(3, int)
    f = functools.partial(constant, value, classes)
    np.testing.assert_array_equal(wrm(gamma=1.0)(f, x, labels), x)


def test_a_step_costs_one_forward_pass_and_one_input_gradient() -> None:
    x, labels = points().astype(jnp.float32), jnp.zeros(3, int)
    jaxpr = jax.make_jaxpr(lambda z: wrm(gamma=1.0)(linear, z, labels))(x)
    assert str(jaxpr).count("dot_general[") == 2
    result = wrm(gamma=1.0, num_steps=7).run(linear, x, labels)
    np.testing.assert_array_equal(result.steps, 8)


def test_perturbations_without_a_largest_length_count_as_having_no_budget() -> None:
    attack = wrm(gamma=1.0)
    assert not attack.budget
    assert attack.p == 2
    with pytest.raises(ValueError, match="wrm have no budget"):
        attacks.first_success([attack, attacks.pga(p=2.0, epsilon=0.1)])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_shape_and_dtype_are_those_of_the_input(dtype) -> None:
    x = jnp.full((2, 3, 2, 1), 0.5, dtype)
    found = wrm(gamma=1.0)(lambda z: linear(z.reshape(2, 6)), x, jnp.zeros(2, int))
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert np.all(np.isfinite(found.astype(jnp.float32)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "gamma is None and penalty is None"),
        ({"gamma": 1.0, "penalty": 2.0}, "gamma is 1.0 and penalty is 2.0"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({"gamma": 1.0, "num_steps": -1}, "num_steps"),
        ({"gamma": 1.0, "loss": "accuracy"}, "loss is 'accuracy'.*margin"),
        ({"gamma": 1.0, "bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_bad_options_are_refused_by_name(options, name) -> None:
    with pytest.raises(ValueError, match=name):
        wrm(**options)


def test_bad_prices_are_refused_where_the_surrogate_is_computed() -> None:
    x, labels = points(), jnp.zeros(3, int)
    for compute in (surrogate, residual):
        with pytest.raises(ValueError, match="exactly one"):
            compute(linear, x, labels, x)
        with pytest.raises(ValueError, match="gamma is -1"):
            compute(linear, x, labels, x, gamma=-1.0)
