"""Input-gradient penalties against closed forms and differentiated norms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import regularizers

PAIRS = [(2.0, 2), (math.inf, 1), (1.0, math.inf)]
METHODS = ("forward", "central", "double_backpropagation")


def pictures(dtype=jnp.float64):
    return jax.random.normal(jax.random.key(0), (3, 2, 5), dtype)


def linear(weight, x):
    return x.reshape(len(x), -1) @ weight


def smooth(weight, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ weight.reshape(10, 4))
    return jnp.sum(hidden**2 + hidden, axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("p", "dual"), PAIRS)
def test_a_linear_loss_has_the_norm_of_its_weights(method, p, dual):
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(0).normal(size=10))
        expected = np.linalg.norm(weight, dual)

        @functools.partial(jax.jit, static_argnums=(1, 2))
        def value(weight, squared, divided):
            loss = functools.partial(linear, weight)
            return regularizers.gradient_penalty(
                loss,
                pictures(),
                p=p,
                method=method,
                squared=squared,
                divide_by_size=divided,
            ).value

        np.testing.assert_allclose(value(weight, True, False), expected**2 / 2)
        np.testing.assert_allclose(value(weight, True, True), expected**2 / 20)
        np.testing.assert_allclose(value(weight, False, False), expected)
        # Its gradient in the weights is that of the norm.
        found = jax.grad(lambda w: value(w, False, False)[0])(weight)
        exact = jax.grad(lambda w: jnp.linalg.norm(w, dual))(weight)
        np.testing.assert_allclose(found, exact, atol=1e-9)
        # No gradient, no direction: neither value nor derivative is NaN.
        zero = jnp.zeros(10)
        np.testing.assert_array_equal(value(zero, True, False), 0)
        slope = jax.grad(lambda w: value(w, True, False)[0])(zero)
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(("p", "dual"), PAIRS)
def test_differences_tend_to_the_gradients_norm(p, dual):
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(1).normal(size=40)) / 3
        x = pictures()

        def norm(weight):
            gradient = jax.grad(lambda x: smooth(weight, x).sum())(x)
            flat = gradient.reshape(3, -1)
            return 0.5 * jnp.linalg.norm(flat, dual, axis=1) ** 2

        def penalty(weight, method, step):
            return regularizers.gradient_penalty(
                functools.partial(smooth, weight), x, p=p, method=method, step=step
            ).value

        def both(function):
            return jax.jit(
                lambda w: (function(w), jax.grad(lambda w: function(w).sum())(w))
            )(weight)

        exact, slope = both(norm)
        found, its_slope = both(lambda w: penalty(w, "double_backpropagation", 0.01))
        np.testing.assert_allclose(found, exact, rtol=1e-10)
        np.testing.assert_allclose(its_slope, slope, rtol=1e-8, atol=1e-10)
        for method, order in (("forward", 1), ("central", 2)):
            errors = []
            for step in (1e-2, 1e-3):
                found, its_slope = both(lambda w, s=step, m=method: penalty(w, m, s))
                errors.append(np.abs(found - exact).max())
                assert np.abs(its_slope - slope).max() < 20 * step**order
            np.testing.assert_allclose(np.log10(errors[0] / errors[1]), order, atol=0.2)


def test_frobenius_penalty_is_unbiased():
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))

        def value(weight, key):
            return regularizers.jacobian_frobenius_penalty(
                lambda x: x.reshape(len(x), -1) @ weight, pictures(), key=key
            )

        keys = jax.random.split(jax.random.key(1), 2000)
        found = jax.jit(jax.vmap(value, (None, 0)))(weight, keys)
        error = found.std(axis=0) / np.sqrt(len(keys))
        exact = 0.5 * jnp.sum(weight**2)
        assert np.all(np.abs(found.mean(axis=0) - exact) < 4 * error)
        slope = jax.jit(jax.grad(lambda w: jax.vmap(value, (None, 0))(w, keys).mean()))
        np.testing.assert_allclose(slope(weight), weight, atol=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "backward"}, "method is 'backward'.*central"),
        ({"step": 0.0}, "step is 0"),
        ({"p": 0.5}, "p is 0.5"),
        ({"squared": False, "divide_by_size": True}, "divide_by_size"),
    ],
)
def test_bad_options_are_refused(options, message):
    loss = functools.partial(linear, jnp.ones(10))
    with pytest.raises(ValueError, match=message):
        regularizers.gradient_penalty(loss, pictures(jnp.float32), **options)


def test_what_cannot_be_differenced_is_refused():
    x = pictures(jnp.bfloat16)
    loss = functools.partial(linear, jnp.ones(10, jnp.bfloat16))
    with pytest.raises(ValueError, match="bfloat16.*double_backpropagation"):
        regularizers.gradient_penalty(loss, x)
    found = regularizers.gradient_penalty(loss, x, method="double_backpropagation")
    np.testing.assert_allclose(found.value, 5.0, rtol=0.02)
    with pytest.raises(ValueError, match="loss returns"):
        regularizers.gradient_penalty(lambda x: x, pictures(jnp.float32))
    with pytest.raises(ValueError, match="num_projections is 0"):
        regularizers.jacobian_frobenius_penalty(
            lambda x: x, x, num_projections=0, key=jax.random.key(0)
        )
