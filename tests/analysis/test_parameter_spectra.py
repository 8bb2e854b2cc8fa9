"""Spectra in the parameters, against dense second derivatives."""

import functools

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import analysis, models
from tests.support.curved_networks import (
    IMAGES,
    LABELS,
    apply,
    cross_entropy,
    variables,
)

Partial = jax.tree_util.Partial


@functools.partial(jax.jit, static_argnames="matrix")
def dense_in_the_parameters(bound, images, labels, matrix):
    flat, unravel = jax.flatten_util.ravel_pytree(bound["params"])

    def logits(flat):
        return apply({**bound, "params": unravel(flat)}, images)

    if matrix == "hessian":

        def loss(flat):
            return cross_entropy(logits(flat), labels).mean()

        return jax.jacfwd(jax.jacrev(loss))(flat)
    p, jacobian = jax.nn.softmax(logits(flat)), jax.jacrev(logits)(flat)
    inner = jax.vmap(jnp.diag)(p) - jnp.einsum("bd,be->bde", p, p)
    return jnp.einsum("bdn,bde,bem->nm", jacobian, inner, jacobian) / len(p)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_the_parameter_spectrum_is_the_dense_one(matrix) -> None:
    # The batches of 3 have two copies for 7 examples, which must not count.
    progress: list[float] = []
    with jax.enable_x64(True):
        bound = variables()
        dense = np.asarray(dense_in_the_parameters(bound, IMAGES, LABELS, matrix))
        found = analysis.parameter_spectrum(
            Partial(apply, bound),
            IMAGES,
            LABELS,
            matrix=matrix,
            num_steps=48,
            num_probes=60,
            batch_size=3,
            key=jax.random.key(0),
            on_progress=progress.append,
        )
    values = np.linalg.eigvalsh(dense)
    scale = values[-1]
    assert found.size == 48
    for end, expected in ((found.largest, scale), (found.smallest, values[0])):
        assert abs(end.value - expected) <= 1e-10 * scale
        assert end.error <= 1e-10 * scale
    assert (values[0] < -1e-3 * scale) == (matrix == "hessian")
    # As many steps as parameters find every eigenvalue, as often as it occurs.
    assert found.density.nodes.shape == found.density.weights.shape == (1, 60, 48)
    nodes = np.sort(found.density.nodes[0], axis=1)
    np.testing.assert_allclose(nodes, np.tile(values, (60, 1)), atol=1e-10 * scale)
    np.testing.assert_allclose(found.density.weights.sum(axis=2), 1)
    # The variance of <z, A z> over signs z, and the standard error that it leaves.
    variance = 2 * (np.sum(dense**2) - np.sum(np.diag(dense) ** 2))
    mean, error = found.trace.mean, found.trace.standard_error
    assert 0.7 < error / np.sqrt(variance / 60) < 1.4
    assert abs(mean - np.trace(dense)) < 4 * error
    np.testing.assert_allclose(progress, np.arange(1, 61) / 60)


def test_the_ends_found_in_few_steps_are_within_their_errors() -> None:
    with jax.enable_x64(True):
        bound = variables()
        values = np.linalg.eigvalsh(
            dense_in_the_parameters(bound, IMAGES, LABELS, "hessian")
        )
        found = analysis.parameter_spectrum(
            Partial(apply, bound),
            IMAGES,
            LABELS,
            num_steps=4,
            num_probes=1,
            key=jax.random.key(3),
        )
    for end in (found.largest, found.smallest):
        assert end.error / values[-1] > 1e-6
        assert np.abs(values - end.value).min() <= end.error
    assert values[0] <= found.smallest.value < found.largest.value <= values[-1]
    assert np.isnan(found.trace.standard_error)


def test_the_spectrum_of_chosen_parameters_is_that_of_their_block() -> None:
    with jax.enable_x64(True):
        bound = variables()
        dense = dense_in_the_parameters(bound, IMAGES, LABELS, "hessian")
        found = analysis.parameter_spectrum(
            Partial(apply, bound),
            IMAGES,
            LABELS,
            parameters=lambda path: path.endswith("second"),
            num_steps=15,
            num_probes=1,
            key=jax.random.key(0),
        )
    # The parameters are in the order of their names: bias, first, second.
    values = np.linalg.eigvalsh(np.asarray(dense)[-15:, -15:])
    nodes = np.sort(found.density.nodes[0, 0])
    np.testing.assert_allclose(nodes, values, atol=1e-10 * values[-1])
    assert found.size == 15


class Normalized(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(self.norm(x.reshape(len(x), -1)))


LINEN = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dense(3)])
LINEN_VARIABLES = {
    "params": {
        "layers_0": {"bias": np.zeros(3, np.float32), "scale": np.ones(3, np.float32)},
        "layers_1": {"bias": np.zeros(3, np.float32), "kernel": np.ones((3, 3))},
    },
    "batch_stats": {"layers_0": {"mean": np.zeros(3), "var": np.ones(3)}},
}


@pytest.mark.parametrize(
    ("f", "count"),
    [
        (Normalized(), 6 + 6 + 18 + 3),
        (models.network(LINEN, LINEN_VARIABLES), 3 + 3 + 9 + 3),
        (Partial(LINEN.apply, LINEN_VARIABLES), 3 + 3 + 9 + 3),
        (Partial(lambda weights, x: x, [np.ones((6, 3)), np.arange(6)]), 18),
    ],
    ids=["nnx", "linen", "variables", "weights"],
)
def test_running_statistics_and_integers_are_no_parameters(f, count) -> None:
    images, labels = _float32(examples())
    with pytest.raises(ValueError, match=f"must be from 1 to {count}"):
        analysis.parameter_spectrum(
            f, images, labels, num_steps=1000, key=jax.random.key(0)
        )


def examples():
    return IMAGES, LABELS.astype(np.int32)


def _float32(tree):
    def narrow(leaf):
        return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf

    return jax.tree.map(narrow, tree)


def test_bad_arguments_are_refused_by_name() -> None:
    f, (images, labels) = Partial(apply, _float32(variables())), _float32(examples())
    for options, words in (
        ({"matrix": "fisher"}, "matrix is 'fisher'.*gauss_newton"),
        ({"num_probes": 0}, "num_probes is 0"),
        ({"num_steps": 49}, "num_steps is 49.*to 48"),
        ({"batch_size": 0}, "batch_size is 0"),
        (
            {"parameters": lambda path: "kernel" in path},
            "parameters chooses none.*0/0/params/bias, .*, 0/0/shift",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            analysis.parameter_spectrum(
                f, images, labels, key=jax.random.key(0), **options
            )
    with pytest.raises(ValueError, match=r"f is a function that shows.*Partial"):
        analysis.parameter_spectrum(
            lambda x: f(x), images, labels, key=jax.random.key(0)
        )
