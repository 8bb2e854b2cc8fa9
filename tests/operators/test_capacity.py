"""Capacity norms in logarithms against their definitions in plain numbers."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators

STEPS = 4


class Convolutions(nn.Module):
    """A chain of two convolutions, one of them with a stride, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        h = nn.elu(nn.Conv(3, (3, 3), use_bias=False)(x))
        h = nn.elu(nn.Conv(4, (2, 2), strides=2, use_bias=False)(h))
        return nn.Dense(3, use_bias=False)(h.reshape(len(h), -1))


class Perceptron(nn.Module):
    """A chain of three dense layers."""

    @nn.compact
    def __call__(self, x):
        h = x.reshape(len(x), -1)
        for width in (7, 5):
            h = nn.elu(nn.Dense(width, use_bias=False)(h))
        return nn.Dense(3, use_bias=False)(h)


NETWORKS = {"perceptron": Perceptron, "convolutions": Convolutions}


@functools.cache
def network(name):
    module, x = NETWORKS[name](), jnp.zeros((1, 4, 5, 2))
    return operators.layers(module, module.init(jax.random.key(0), x), x)


@functools.cache
def matrices(name, form="operator"):
    layers = network(name)
    if form == "kernel":
        return [
            np.asarray(layer.kernel, np.float64).reshape(-1, layer.kernel.shape[-1])
            for layer in layers
        ]
    dense = []
    for layer in layers:
        linear_map = operators.layer_map(layer)
        eye = np.eye(linear_map.in_size, dtype=np.float32)
        columns = jax.vmap(lambda v, m=linear_map: m.matvec(v[None])[0])(
            eye.reshape(-1, *linear_map.in_shape)
        )
        dense.append(np.asarray(columns, np.float64).reshape(len(eye), -1).T)
    return dense


def parts(dense):
    """Q, R and S of the definition."""
    norms = np.array([np.linalg.norm(matrix, 2) for matrix in dense])
    lengths = np.array([np.linalg.norm(matrix) for matrix in dense])
    return norms.prod(), np.cumprod(norms).sum(), np.sum((lengths / norms) ** 2)


def capacities(dense, epsilon, step_size, kappa, penalty):
    """Phi of each scheme, as in the theorems."""
    q, r, s = parts(dense)
    ratio = 2 * step_size / kappa * q * r
    rounds = (1 - ratio**STEPS) / (1 - ratio)
    factors = {
        "erm": 1,
        "fgm": 1 + epsilon / kappa * q * r,
        "pgm": 1 + step_size / kappa * rounds * q * r,
        "wrm": 1 + q * r / (penalty - q * r),
    }
    return {scheme: (q * factor) ** 2 * s for scheme, factor in factors.items()}


@functools.partial(jax.jit, static_argnames=("form", "attack_steps"))
def measure(
    layers,
    epsilon=0.1,
    step_size=0.05,
    kappa=0.5,
    penalty=1e3,
    input_scale=1.0,
    form="operator",
    attack_steps=STEPS,
):
    """All schemes at once."""
    options = {
        "erm": {},
        "fgm": {"epsilon": epsilon, "kappa": kappa},
        "pgm": {"step_size": step_size, "attack_steps": attack_steps, "kappa": kappa},
        "wrm": {"penalty": penalty},
    }
    return {
        scheme: operators.log_capacity(
            layers, scheme=scheme, input_scale=input_scale, form=form, **chosen
        )
        for scheme, chosen in options.items()
    }


@pytest.mark.parametrize("form", ["operator", "kernel"])
def test_capacities_are_their_definitions(form):
    dense = matrices("perceptron", form)
    q, r, s = parts(dense)
    for epsilon, step_size, kappa in ((0.1, 0.05, 0.5), (3.0, 0.7, 0.01)):
        penalty = 1.3 * q * r
        found = measure(
            network("perceptron"), epsilon, step_size, kappa, penalty, form=form
        )
        expected = capacities(dense, epsilon, step_size, kappa, penalty)
        for scheme, value in expected.items():
            result = found[scheme]
            np.testing.assert_allclose(result.log_capacity, np.log(value), rtol=1e-5)
            logs = np.log([q, r, s, q * r, np.sqrt(value / s) / q])
            np.testing.assert_allclose(result[1:], logs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["operator", "kernel"])
def test_convolutions_are_their_matrices(form):
    @jax.jit
    def fgm(layers, epsilons):
        # The norms are computed once for all budgets.
        return jax.vmap(
            lambda epsilon: operators.log_capacity(
                layers, scheme="fgm", epsilon=epsilon, kappa=0.5, form=form
            )
        )(epsilons)

    epsilons = np.array([0.0, 0.1, 2.0])
    found = fgm(network("convolutions"), epsilons)
    dense = matrices("convolutions", form)
    expected = [capacities(dense, e, 0.1, 0.5, 1e3)["fgm"] for e in epsilons]
    np.testing.assert_allclose(found.log_capacity, np.log(expected), rtol=1e-5)
    logs = np.tile(np.log(parts(dense))[:, None], 3)
    np.testing.assert_allclose(found[1:4], logs, rtol=1e-5)


def test_without_an_attack_all_schemes_are_erm():
    layers = network("perceptron")
    erm = jax.jit(operators.log_spectral_complexity)(layers)
    found = measure(layers, epsilon=0.0, step_size=0.0, penalty=np.inf)
    for scheme in found:
        assert found[scheme].log_capacity == found["erm"].log_capacity
        assert found[scheme].log_factor == 0
    np.testing.assert_allclose(found["erm"].log_capacity, erm.log_complexity, 1e-6)
    # The gradient of the loss does not matter either.
    none = measure(layers, epsilon=0.0, step_size=0.0, kappa=0.0)
    for scheme in ("fgm", "pgm"):
        assert none[scheme].log_capacity == none["erm"].log_capacity
    large = measure(layers, penalty=1e9)
    np.testing.assert_allclose(large["wrm"].log_factor, 0, atol=1e-6)


def test_one_step_of_length_epsilon_is_the_fast_gradient_method():
    found = measure(network("perceptron"), 0.3, 0.3, 0.2, attack_steps=1)
    np.testing.assert_allclose(found["pgm"], found["fgm"], rtol=1e-6)


def test_where_the_ratio_is_one_the_terms_are_as_many_as_the_steps():
    q, r, _ = parts(matrices("perceptron"))
    found = measure(network("perceptron"), step_size=0.5 / (q * r), kappa=1.0)
    np.testing.assert_allclose(found["pgm"].log_factor, np.log(1 + STEPS / 2), 1e-5)


def scalars(*values):
    return [
        operators.Layer(jnp.full((1, 1), value), str(i), "dense", (1,))
        for i, value in enumerate(values)
    ]


def test_one_layer_is_its_own_product_and_sum():
    found = measure(scalars(3.0))["fgm"]
    np.testing.assert_allclose(found.log_product, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(found.log_sum, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(found.log_smoothness, np.log(9), rtol=1e-6)
    np.testing.assert_allclose(found.log_ratio, 0, atol=1e-6)


def test_fifty_layers_and_fifteen_steps_do_not_overflow():
    found = measure(scalars(*[1000.0] * 50), 1.0, 1.0, 2.0, attack_steps=15)
    # Integers of Python are exact. Here alpha / kappa is 1/2 and 2 alpha / kappa is 1.
    product, total = 1000**50, sum(1000**i for i in range(1, 51))
    rounds = sum((product * total) ** s for s in range(15))
    factor = 1 + rounds * product * total // 2
    expected = 2 * (math.log(product) + math.log(factor)) + math.log(50)
    np.testing.assert_allclose(found["pgm"].log_capacity, expected, rtol=1e-5)
    tiny = measure(scalars(*[1e-3] * 50), 1.0, 1.0, 2.0)
    expected = 100 * math.log(1e-3) + math.log(50)
    for scheme in tiny:
        np.testing.assert_allclose(tiny[scheme].log_capacity, expected, rtol=1e-5)


def test_flat_losses_cheap_perturbations_and_zero_layers():
    found = measure(scalars(2.0, 2.0), kappa=0.0, penalty=24.001)
    assert found["fgm"].log_capacity == found["pgm"].log_capacity == np.inf
    # Q = 4 and R = 6.
    np.testing.assert_allclose(found["wrm"].log_factor, np.log(24.001 / 1e-3), 0.01)
    for penalty in (24.0 * (1 - 1e-6), 1.0):
        found = measure(scalars(2.0, 2.0), penalty=penalty)
        assert found["wrm"].log_capacity == np.inf
        np.testing.assert_allclose(found["wrm"].log_product, np.log(4), rtol=1e-6)
    for values in ((0.0, 2.0), (2.0, 0.0)):
        found = measure(scalars(*values), kappa=0.0)
        for scheme in found:
            assert found[scheme].log_capacity == -np.inf


def test_price_is_that_of_the_attack_in_either_convention():
    layers = scalars(0.5, 2.0)
    one, two = jax.jit(
        lambda layers: [
            operators.log_capacity(layers, scheme="wrm", **price)
            for price in ({"gamma": 2.0}, {"penalty": 4.0})
        ]
    )(layers)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    # Q = 1 and R = 1.5.
    np.testing.assert_allclose(one.log_factor, np.log(4 / 2.5), rtol=1e-6)


def test_input_scale_is_a_part_of_the_first_layer():
    first, *rest = network("perceptron")
    multiplied = [first.replace(kernel=3 * first.kernel), *rest]
    expected = measure(multiplied)
    for scale in (3.0, np.float32([2.0, -3.0])):
        found = measure(network("perceptron"), input_scale=scale)
        for scheme in found:
            np.testing.assert_allclose(found[scheme], expected[scheme], 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scheme": "pgd"}, "scheme is 'pgd'"),
        ({"scheme": "erm", "epsilon": 0.1}, "epsilon is 0.1"),
        ({"scheme": "fgm", "epsilon": 0.1}, "kappa is None"),
        ({"scheme": "fgm", "epsilon": -0.1, "kappa": 1.0}, "epsilon is -0.1"),
        ({"scheme": "fgm", "epsilon": 0.1, "kappa": -1.0}, "kappa is -1.0"),
        ({"scheme": "pgm", "step_size": 0.1, "kappa": 1.0}, "attack_steps is None"),
        (
            {"scheme": "pgm", "step_size": 0.1, "kappa": 1.0, "attack_steps": 0},
            "attack_steps is 0",
        ),
        ({"scheme": "wrm"}, "exactly one"),
        ({"scheme": "wrm", "gamma": 1.0, "penalty": 2.0}, "exactly one"),
        ({"scheme": "wrm", "penalty": 0.0}, "penalty is 0.0"),
        ({"scheme": "erm", "form": "matrix"}, "form is 'matrix'"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        operators.log_capacity(scalars(1.0), **options)


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="layers is empty"):
        operators.log_capacity([], scheme="erm")
