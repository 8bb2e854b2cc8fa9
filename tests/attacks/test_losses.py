"""Losses of attacks against optax and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opnorm import attacks


def test_cross_entropy_is_optaxs():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(attacks.cross_entropy(logits, labels), expected, 1e-5)


@pytest.mark.parametrize("margin", (20.0, 40.0, 80.0))
def test_cross_entropy_keeps_its_gradient_at_large_margins(margin):
    logits, labels = jnp.array([[margin, 0.0]]), jnp.array([0])
    value, gradient = jax.value_and_grad(
        lambda z: attacks.cross_entropy(z, labels).sum()
    )(logits)
    np.testing.assert_allclose(value, np.exp(-margin), rtol=1e-4)
    np.testing.assert_allclose(
        gradient, [[-np.exp(-margin), np.exp(-margin)]], rtol=1e-4
    )


def test_margin_is_positive_just_for_errors():
    logits = jnp.array([[3.0, 1.0, -2.0], [1.0, 1.5, 0.0]])
    found = attacks.margin(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(found, [-2.0, 0.5])


def test_one_class_has_nothing_to_confuse():
    logits, labels = jnp.ones((2, 1)), jnp.zeros(2, int)
    gradient = jax.grad(lambda z: attacks.cross_entropy(z, labels).sum())(logits)
    np.testing.assert_array_equal(gradient, 0)
    assert np.all(np.isfinite(attacks.margin(logits, labels)))


@pytest.mark.parametrize("q", (1.0, 2.0, np.inf))
def test_logit_distance(q):
    a = jax.random.normal(jax.random.key(0), (3, 4))
    found = attacks.logit_distance(a, jnp.zeros_like(a), q)
    np.testing.assert_allclose(found, np.linalg.norm(a, q, axis=1), rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="logits and labels"):
        attacks.cross_entropy(jnp.ones((2, 3)), jnp.zeros(3, int))


def test_half_precision_logits_give_float32_losses():
    logits, labels = jnp.array([[1.0, 2.0]], jnp.bfloat16), jnp.array([0])
    assert attacks.cross_entropy(logits, labels).dtype == jnp.float32
    assert attacks.margin(logits, labels).dtype == jnp.float32
