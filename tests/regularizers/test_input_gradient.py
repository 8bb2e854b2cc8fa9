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


def images(dtype=jnp.float64):
    return jax.random.normal(jax.random.key(0), (3, 2, 5), dtype)


def linear(weight, x):
    return x.reshape(len(x), -1) @ weight


def smooth(weight, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ weight.reshape(10, 4))
    return jnp.sum(hidden**2 + hidden, axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("p", "dual"), PAIRS)
def test_a_linear_loss_has_the_norm_of_its_weights(method, p, dual):
    def value(weight, **options):
        found = regularizers.gradient_penalty(
            functools.partial(linear, weight), images(), p=p, method=method, **options
        ).value
        return found.mean(), found

    @jax.jit
    def values(weight):
        slope = functools.partial(jax.grad, has_aux=True)
        return (
            slope(value)(weight),
            slope(functools.partial(value, squared=False))(weight),
            value(weight, divide_by_size=True)[1],
        )

    with jax.enable_x64(True):
        weight = np.random.default_rng(0).normal(size=10)
        (_, half_square), (slope, found), divided = values(weight)
        (slope_at_zero, zero), *_ = values(np.zeros(10))
    expected = np.linalg.norm(weight, dual)
    np.testing.assert_allclose(half_square, expected**2 / 2)
    np.testing.assert_allclose(divided, expected**2 / 20)
    np.testing.assert_allclose(found, expected)
    # The gradient in the weights is the gradient of the norm.
    exact = {
        2: weight / expected,
        1: np.sign(weight),
        math.inf: np.where(np.abs(weight) == expected, np.sign(weight), 0),
    }[dual]
    np.testing.assert_allclose(slope, exact, atol=1e-9)
    # Without a gradient there is no direction, and value and derivative are not NaN.
    np.testing.assert_array_equal(zero, 0)
    np.testing.assert_array_equal(slope_at_zero, 0)


@pytest.mark.parametrize(("p", "dual"), PAIRS)
def test_differences_tend_to_the_gradients_norm(p, dual):
    def norm(weight):
        gradient = jax.grad(lambda x: smooth(weight, x).sum())(images())
        return 0.5 * jnp.linalg.norm(gradient.reshape(3, -1), dual, axis=1) ** 2

    def penalty(method, step, weight):
        return regularizers.gradient_penalty(
            functools.partial(smooth, weight), images(), p=p, method=method, step=step
        ).value

    @jax.jit
    def both(weight):
        """Values, and slopes of their sum, of the norm and of all penalties."""
        return [
            (function(weight), jax.grad(lambda w, f=function: f(w).sum())(weight))
            for function in (
                norm,
                functools.partial(penalty, "double_backpropagation", 0.01),
                *(
                    functools.partial(penalty, method, step)
                    for method in METHODS[:2]
                    for step in (1e-2, 1e-3)
                ),
            )
        ]

    with jax.enable_x64(True):
        weight = np.random.default_rng(1).normal(size=40) / 3
        (exact, slope), double, *differences = jax.tree.map(np.asarray, both(weight))
    np.testing.assert_allclose(double[0], exact, rtol=1e-10)
    np.testing.assert_allclose(double[1], slope, rtol=1e-8, atol=1e-10)
    for order in (1, 2):
        errors = []
        for step in (1e-2, 1e-3):
            found, its_slope = differences.pop(0)
            errors.append(np.abs(found - exact).max())
            assert np.abs(its_slope - slope).max() < 20 * step**order
        np.testing.assert_allclose(np.log10(errors[0] / errors[1]), order, atol=0.2)


def test_frobenius_penalty_is_unbiased():
    def values(weight, keys):
        found = jax.vmap(
            lambda key: regularizers.jacobian_frobenius_penalty(
                lambda x: x.reshape(len(x), -1) @ weight, images(), key=key
            )
        )(keys)
        return found.mean(), found

    with jax.enable_x64(True):
        weight = np.random.default_rng(0).normal(size=(10, 3))
        keys = jax.random.split(jax.random.key(1), 2000)
        slope, found = jax.jit(jax.grad(values, has_aux=True))(weight, keys)
    found = np.asarray(found)
    error = found.std(axis=0) / np.sqrt(len(keys))
    exact = 0.5 * np.sum(weight**2)
    assert np.all(np.abs(found.mean(axis=0) - exact) < 4 * error)
    np.testing.assert_allclose(slope, weight, atol=0.2)


def test_frobenius_penalty_runs_under_shard_map():
    # The columns are orthogonal and of length 2, so every direction gives the norm.
    weight = 2 * np.eye(10, 3, dtype=np.float32)

    def penalty(x, key):
        return regularizers.jacobian_frobenius_penalty(
            lambda x: x.reshape(len(x), -1) @ weight, x, num_projections=2, key=key
        )

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")
    run = jax.shard_map(penalty, mesh=mesh, in_specs=(rows, jax.P()), out_specs=rows)
    found = jax.jit(run)(np.ones((16, 2, 5), np.float32), jax.random.key(0))
    np.testing.assert_allclose(found, np.full(16, 6.0), rtol=1e-5)


@pytest.mark.parametrize("f", [lambda x: x, lambda x: x.sum(axis=(1, 2))])
def test_frobenius_penalty_refuses_outputs_of_another_rank(f):
    with pytest.raises(ValueError, match=r"f returns.*shape \(3, d\)"):
        regularizers.jacobian_frobenius_penalty(
            f, images(jnp.float32), key=jax.random.key(0)
        )


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
        regularizers.gradient_penalty(loss, images(jnp.float32), **options)


def test_what_cannot_be_differenced_is_refused():
    x = images(jnp.bfloat16)
    loss = functools.partial(linear, jnp.ones(10, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"loss returns bfloat16.*backpropagation"):
        regularizers.gradient_penalty(
            lambda x: loss(x.astype(jnp.bfloat16)), images(jnp.float32)
        )
    for method in METHODS[:2]:
        # The input is rounded before the loss in float32 is computed.
        with pytest.raises(ValueError, match=r"x has dtype bfloat16.*backpropagation"):
            regularizers.gradient_penalty(
                lambda x: linear(jnp.ones(10), x.astype(jnp.float32)), x, method=method
            )
    found = regularizers.gradient_penalty(loss, x, method="double_backpropagation")
    np.testing.assert_allclose(found.value, 5.0, rtol=0.02)
    with pytest.raises(ValueError, match="loss returns"):
        regularizers.gradient_penalty(lambda x: x, images(jnp.float32))
    with pytest.raises(ValueError, match="num_projections is 0"):
        regularizers.jacobian_frobenius_penalty(
            lambda x: x, x, num_projections=0, key=jax.random.key(0)
        )
