"""Curvature in the input, against dense second derivatives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, models
from tests.support.curved_networks import (
    IMAGES,
    LABELS,
    apply,
    cross_entropy,
    hidden,
    logits_of,
    variables,
)

Partial = jax.tree_util.Partial


def smooth(variables, x):
    # The activation is linear outside of (-1/2, 1/2), so only some examples are curved.
    return logits_of(variables, models.smooth_relu(hidden(variables, x)))


@functools.partial(jax.jit, static_argnames="network")
def dense_in_the_inputs(bound, network=apply):
    def loss(x, label):
        return cross_entropy(network(bound, x[None]), label[None])[0]

    def flat(derivative):
        found = jax.vmap(derivative)(jnp.asarray(IMAGES), jnp.asarray(LABELS))
        return found.reshape(7, *(6,) * (found.ndim // 2))

    jacobian = jax.vmap(jax.jacrev(lambda x: network(bound, x[None])[0]))
    return (
        flat(jax.grad(loss)),
        flat(jax.jacfwd(jax.jacfwd(loss))),
        jacobian(jnp.asarray(IMAGES)).reshape(7, 3, 6),
    )


def test_input_curvature_is_that_of_the_dense_derivatives() -> None:
    progress: list[float] = []
    with jax.enable_x64(True):
        bound = variables()
        gradients, hessians, jacobians = dense_in_the_inputs(bound)
        found = analysis.input_curvature(
            Partial(apply, bound),
            IMAGES,
            LABELS,
            batch_size=4,
            on_progress=progress.append,
        )
    eigenvalues = np.linalg.eigvalsh(hessians)
    assert eigenvalues[:, -1].max() > 10 * eigenvalues[:, -1].min()
    np.testing.assert_allclose(found.largest, eigenvalues[:, -1], rtol=1e-9, atol=1e-12)
    traces = np.trace(hessians, axis1=1, axis2=2)
    np.testing.assert_allclose(found.trace, traces, rtol=1e-9, atol=1e-12)
    assert found.trace.max() > 1.01 * found.largest.max()
    lengths = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(found.gradient_norm, lengths, rtol=1e-9, atol=1e-12)
    sigma = np.linalg.norm(jacobians, ord=2, axis=(1, 2))
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9)
    np.testing.assert_array_equal(found.smallest, np.zeros(7))
    assert not found.curved.any()
    assert not found.trace_error.any()
    assert found.error.max() <= 1e-10 * found.largest.max()
    assert progress == [0.5, 1.0]


def test_the_input_curvature_of_a_smooth_network_is_that_of_its_whole_hessian() -> None:
    with jax.enable_x64(True):
        bound = variables(scale=4.0)
        bound["params"]["second"] /= 4
        dense = dense_in_the_inputs(bound, smooth)
        gradients, hessians, jacobians = map(np.asarray, dense)
        exact, few = (
            analysis.input_curvature(
                Partial(smooth, bound),
                IMAGES,
                LABELS,
                num_steps=steps,
                num_probes=probes,
                batch_size=4,
                key=jax.random.key(1),
            )
            for steps, probes in ((30, 6), (3, 5))
        )
        bends = np.abs(hidden(bound, IMAGES)) < 0.5
        p = np.asarray(jax.nn.softmax(smooth(bound, IMAGES)))
    chex.assert_tree_all_finite((exact, few))
    curved = bends.any(axis=1)
    for found in (exact, few):
        np.testing.assert_array_equal(found.curved, curved)
        lengths = np.linalg.norm(gradients, axis=1)
        np.testing.assert_allclose(found.gradient_norm, lengths, rtol=1e-9)
    assert 0 < curved.sum() < 7
    # The Hessian is not its Gauss-Newton part, which has no negative eigenvalue.
    inner = p[:, :, None] * (np.eye(3) - p[:, None])
    rest = hessians - np.einsum("bdm,bde,ben->bmn", jacobians, inner, jacobians)
    sizes = np.linalg.norm(rest, axis=(1, 2))
    assert sizes[curved].min() > 1e-4
    assert sizes[~curved].max() < 1e-12
    values = np.linalg.eigvalsh(hessians)
    assert values[:, 0].min() < -0.1 < 0.1 < values[:, -1].max()
    # As many steps and probes as pixels find everything.
    np.testing.assert_allclose(exact.largest, values[:, -1], rtol=1e-9)
    np.testing.assert_allclose(exact.smallest, values[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(exact.trace, values.sum(axis=1), rtol=1e-9)
    assert not exact.trace_error.any()
    assert exact.error.max() < 1e-9
    # Fewer steps and probes leave errors, which are reported.
    for end in (few.largest, few.smallest):
        nearest = np.abs(values - end[:, None]).min(axis=1)
        assert np.all(nearest <= few.error + 1e-12)
    assert np.all(values[:, 0] - 1e-12 <= few.smallest)
    assert np.all(few.smallest <= few.largest)
    assert np.all(few.largest <= values[:, -1] + 1e-12)
    assert few.error[curved].max() > 1e-3
    # The variance of <z, R z> over signs z, for the part that probes see.
    diagonal = np.einsum("bnn->bn", rest)
    variance = 2 * (sizes**2 - np.sum(diagonal**2, axis=1))[curved] / 5
    deviations = (few.trace - values.sum(axis=1))[curved] / np.sqrt(variance)
    assert 0.3 < np.sqrt(np.mean(deviations**2)) < 2
    kept = np.mean(few.trace_error[curved] ** 2 / variance)
    assert 0.3 < kept < 2
    assert np.all(few.trace_error[~curved] == 0)
    np.testing.assert_allclose(few.trace[~curved], exact.trace[~curved], rtol=1e-9)


def test_a_network_that_does_not_look_has_no_curvature() -> None:
    flat = {
        **variables(),
        "params": {**variables()["params"], "first": np.zeros((6, 5))},
    }
    f = Partial(apply, _float32(flat))
    for found in analysis.input_curvature(f, *_float32(examples())):
        np.testing.assert_array_equal(found, np.zeros(7, found.dtype))


def examples():
    return IMAGES, LABELS.astype(np.int32)


def _float32(tree):
    def narrow(leaf):
        return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf

    return jax.tree.map(narrow, tree)


def test_bad_arguments_are_refused_by_name() -> None:
    f, (images, labels) = Partial(apply, _float32(variables())), _float32(examples())
    with pytest.raises(ValueError, match="images and labels have"):
        analysis.input_curvature(f, images, labels[1:])
    for options, words in (
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_probes": 0}, "num_probes is 0"),
        ({"key": 3}, "key"),
    ):
        with pytest.raises(ValueError, match=words):
            analysis.input_curvature(f, images, labels, **options)
