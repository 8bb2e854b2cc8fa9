"""Losses of attacks against optax and closed forms."""

import chex
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


@pytest.mark.parametrize("margin", [20.0, 40.0, 80.0])
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


def test_one_logit_is_refused():
    logits, labels = jnp.ones((2, 1)), jnp.zeros(2, int)
    for loss in (attacks.cross_entropy, attacks.margin, attacks.dlr):
        with pytest.raises(ValueError, match="the network has 1 logit"):
            loss(logits, labels)
    with pytest.raises(ValueError, match="the network has 1 logit"):
        attacks.dlr_targeted(logits, labels, labels)


@jax.jit
def measure(logits, labels, targets):
    """Values and gradients of every loss; of the distance to logits beside these."""
    losses = (
        attacks.cross_entropy,
        attacks.margin,
        attacks.dlr,
        lambda z, y: attacks.dlr_targeted(z, y, targets),
        lambda z, y: attacks.logit_distance(z, logits - 0.5, 2.0),
    )
    return [
        jax.value_and_grad(lambda z, f=f: f(z, labels).sum())(logits) for f in losses
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_masked_classes_change_no_loss(count):
    # Nine classes; those at -inf are spread between the others.
    kept = np.sort(np.random.default_rng(count).permutation(9)[:count])
    drawn = np.random.default_rng(7).normal(size=(6, count)).astype(np.float32)
    whole = np.full((6, 9), -np.inf, np.float32)
    whole[:, kept] = drawn
    labels, targets = np.arange(6) % count, (np.arange(6) + 1) % count

    masked = measure(whole, kept[labels], kept[targets])
    plain = measure(drawn, labels, targets)
    chex.assert_tree_all_finite(masked)
    for (value, gradient), (expected, slope) in zip(masked, plain, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[:, kept], slope, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(np.delete(gradient, kept, axis=1), 0)


def test_where_all_other_classes_are_masked_nothing_can_be_gained():
    logits = jnp.array([[-jnp.inf, 2.0, -jnp.inf]])
    for loss, value in ((attacks.cross_entropy, 0.0), (attacks.margin, -jnp.inf)):
        found, gradient = jax.value_and_grad(
            lambda z, f=loss: f(z, jnp.ones(1, int))[0]
        )(logits)
        assert found == value
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("q", [1.0, 2.0, np.inf])
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
