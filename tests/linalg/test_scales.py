"""Results scale with their argument, even where squares leave the range of float32.

One program computes all results, so that its products can be inspected, too.
"""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg, operators, regularizers

pytestmark = pytest.mark.dtypes
KEY = jax.random.key(0)
# The default, which is float64 in one of the suite's modes.
FLOAT = np.dtype(jnp.zeros(()).dtype)
RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(2, 4, 6)).astype(FLOAT)
SQUARE = RNG.normal(size=(2, 6, 6)).astype(FLOAT)
KERNEL = RNG.normal(size=(3, 3, 2, 2)).astype(FLOAT)
EXPONENTS = (1.0, 1.5, 2.0, math.inf)
# Scaling by a power of two has no rounding.
SCALES = [2.0**e for e in (-83, -40, 40, 83)]


class Chain(nn.Module):
    """A convolution and a dense layer."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(2, (3, 3))(x)
        return nn.Dense(3)(h.reshape(len(h), -1))


def norms_and_projections(matrix, s):
    rows = matrix[:, 0]
    found = {}
    for p in EXPONENTS:
        found[f"norm {p}"] = linalg.norm(rows, p) / s
        found[f"dual map {p}"] = linalg.dual_map(rows, p)
        found[f"ball {p}"] = linalg.project_ball(rows, p, s) / s
        found[f"small ball {p}"] = linalg.project_ball(rows, p, 1e-6 * s) / s
        found[f"sphere {p}"] = linalg.project_sphere(rows, p, 9 * s) / s
    for p in (1, 2, math.inf):
        box = linalg.project_ball_box(rows, p, s, -0.2 * s, 0.3 * s)
        found[f"box {p}"] = box / s
    return found


def spectra(matrix, square, s):
    symmetric = linalg.from_matrix(square + jnp.swapaxes(square, 1, 2))
    pairs = linalg.eigenpairs(symmetric, 2, num_steps=4, key=KEY)
    trace = linalg.trace(symmetric, key=KEY)
    density = linalg.spectral_density(symmetric, num_steps=4, num_probes=3, key=KEY)
    blurred = density.at(jnp.linspace(-3, 3, 5) * s, 0.5 * s)
    found = {
        "eigenpairs": (pairs.values / s, pairs.residual / s),
        "trace": (trace.mean / s, trace.standard_error / s),
        "density": (blurred.mean * s, blurred.standard_error * s),
        "clip": linalg.clip_singular_values(matrix[0], s) / s,
    }
    for p, q in ((2, math.inf), (2, 2), (2, 1)):
        found[f"matrix_norm {p} {q}"] = linalg.matrix_norm(matrix, p, q).value / s
    return found


def convolutions(kernel, s):
    shape = (4, 4, 2)
    return {
        "gram": linalg.convolution_upper_bound(kernel, shape, method="gram_iteration")
        / s,
        "frobenius": linalg.convolution_frobenius_norm(kernel, shape) / s,
        "circular": linalg.circular_singular_values(kernel, 4) / s,
        "clip": linalg.clip_circular_singular_values(kernel, 4, s, num_iterations=2)
        / s,
    }


def networks(matrix, s):
    x = jnp.ones((2, 6))

    def f(x):
        return jnp.matmul(x, matrix[0].T, precision="highest")

    found = {}
    for method in ("dense", "iterative", "golub_kahan"):
        norm = operators.jacobian_norm(f, x, method=method, num_steps=2, key=KEY)
        found[method] = (norm.value / s, norm.residual)
    dense = operators.singular_triplets(f, x, 2, method="dense")
    fitted = operators.regressed_jacobian(f, x, num_samples=9, radius=0.1, key=KEY)
    params = {"dense": {"kernel": matrix[0]}}
    vectors = regularizers.init_vectors(params, KEY)
    gain = regularizers.derivative_penalty(f, x, x, q=2.0, squared=False)
    return found | {
        "triplets": (dense.values / s, dense.residual / s),
        "regression": fitted / s,
        "penalty": gain / s,
        "global": regularizers.global_spectral_norm(params, vectors).norms[
            "dense/kernel"
        ]
        / s,
    }


def chains(kernel, s):
    module, x = Chain(), jnp.ones((1, 4, 4, 2))
    variables = module.init(KEY, x)
    params = variables["params"]
    params["Conv_0"]["kernel"] = kernel
    layers = operators.layers(module, variables, x)
    capacity = operators.log_capacity(layers, scheme="erm")
    vectors = regularizers.init_spectral_vectors(params, layers, KEY, num_steps=0)
    divided = regularizers.spectral_normalize(params, layers, vectors, bound=s)
    units = jnp.array([s, 1.0])
    return {
        "norms": [part / units for part in operators.layer_norms(layers)],
        "std": operators.singular_value_std(layers) / units,
        "bound": operators.log_lipschitz_bound(layers) - jnp.log(s),
        "capacity": (capacity.log_product - jnp.log(s), capacity.log_ratio),
        "divided": divided.params["Conv_0"]["kernel"] / s,
    }


def everything(matrix, square, kernel, s):
    matrix, square, kernel = (s * a for a in (matrix, square, kernel))
    return {
        "norms": norms_and_projections(matrix, s),
        "spectra": spectra(matrix, square, s),
        "convolutions": convolutions(kernel, s),
        "networks": networks(matrix, s),
        "chains": chains(kernel, s),
    }


@functools.cache
def lowered():
    return jax.jit(everything).lower(MATRIX, SQUARE, KERNEL, FLOAT.type(1))


@functools.cache
def at_scale(scale):
    program = compiled()
    return jax.device_get(program(MATRIX, SQUARE, KERNEL, FLOAT.type(scale)))


@functools.cache
def compiled():
    return lowered().compile()


@pytest.mark.parametrize("scale", SCALES)
def test_results_scale_with_their_argument(scale):
    found, expected = at_scale(scale), at_scale(1.0)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=2e-5)


def test_every_product_has_the_highest_precision():
    products = [
        line
        for line in lowered().as_text().splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len(products) > 30
    assert [line for line in products if line.count("HIGHEST") < 2] == []
