"""A quick run through every room against closed forms, on any backend.

``OPNORM_TEST_FLAGS=default pytest -m smoke`` runs it with JAX's own flags: for another
release of JAX, another Python, or an accelerator.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opnorm
from opnorm import (
    analysis,
    attacks,
    data,
    linalg,
    models,
    operators,
    regularizers,
    training,
)

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parent.parent
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(6, 3)).astype(np.float32)
X = RANDOM.uniform(0.45, 0.55, (4, 6)).astype(np.float32)
KEY = jax.random.key(0)


def affine(weights, x):
    """Linear logits around the middle of the box."""
    return jnp.matmul(x - 0.5, weights, precision="highest")


NETWORK = jax.tree_util.Partial(affine, WEIGHTS)
LOGITS = (X.astype(np.float64) - 0.5) @ WEIGHTS
LABELS = np.argmax(LOGITS, 1)


def least_distances(p):
    """The distance of each example to the nearest other class, in closed form."""
    dual = linalg.conjugate_exponent(p)
    found = np.full(len(X), np.inf)
    for row, label in enumerate(LABELS):
        for other in set(range(3)) - {int(label)}:
            slope = WEIGHTS[:, label] - WEIGHTS[:, other]
            gap = LOGITS[row, label] - LOGITS[row, other]
            found[row] = min(found[row], gap / np.linalg.norm(slope, dual))
    return found


@pytest.mark.dtypes
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_norms_and_projections(p):
    z = jnp.asarray(RANDOM.normal(size=(3, 5)), jnp.float32)
    np.testing.assert_allclose(
        linalg.norm(z, p), np.linalg.norm(z, p, axis=1), rtol=1e-5
    )
    inside = linalg.project_ball(z, p, 0.5)
    chex.assert_tree_all_finite(inside)
    np.testing.assert_allclose(np.linalg.norm(inside, p, axis=1), 0.5, rtol=1e-4)


@pytest.mark.dtypes
def test_spectra():
    values = np.array([5.0, 5.0, 2.0, -1.0, 0.0, 0.0], np.float32)
    basis, _ = np.linalg.qr(RANDOM.normal(size=(6, 6)))
    matrix = jnp.asarray((basis * values) @ basis.T, jnp.float32)
    pairs = linalg.eigenpairs(
        linalg.from_matrix(matrix), 3, which="largest", num_steps=6, key=KEY
    )
    np.testing.assert_allclose(pairs.values[0], [5, 5, 2], atol=1e-4)
    triplets = linalg.golub_kahan(linalg.from_matrix(matrix), 2, num_steps=6, key=KEY)
    np.testing.assert_allclose(triplets.values[0], [5, 5], atol=1e-4)


@pytest.mark.dtypes
@pytest.mark.parametrize("method", ["dense", "golub_kahan", "iterative"])
def test_the_norm_of_a_jacobian(method):
    found = operators.jacobian_norm(NETWORK, X, method=method, num_steps=50, key=KEY)
    expected = np.linalg.svd(WEIGHTS.astype(np.float64), compute_uv=False)[0]
    np.testing.assert_allclose(found.value, expected, rtol=1e-4)
    chex.assert_shape(found.right, X.shape)


@pytest.mark.dtypes
def test_the_norm_of_a_convolution_and_of_a_penalty():
    kernel = jnp.asarray(RANDOM.normal(size=(3, 3, 2, 4)), jnp.float32)
    shape = (6, 6, 2)
    convolution = linalg.convolution_map(kernel, shape)
    basis = jnp.eye(math.prod(shape), dtype=kernel.dtype).reshape(-1, 1, *shape)
    dense = jax.vmap(convolution.matvec)(basis).reshape(len(basis), -1)
    expected = np.linalg.svd(np.asarray(dense, np.float64), compute_uv=False)[0]
    found = linalg.convolution_norm(kernel, shape)
    np.testing.assert_allclose(found.value, expected, rtol=1e-4)
    vectors = regularizers.init_vectors({"layer": {"kernel": kernel}}, KEY)
    penalty = regularizers.global_spectral_norm({"layer": {"kernel": kernel}}, vectors)
    chex.assert_tree_all_finite(penalty)


@pytest.mark.dtypes
@pytest.mark.parametrize(
    ("name", "p", "options"),
    [
        ("pga", 2.0, {"num_steps": 5}),
        ("pga", math.inf, {"num_steps": 5}),
        ("apgd", 1.0, {"num_steps": 20}),
        ("square", math.inf, {"num_queries": 200}),
    ],
)
def test_attacks_reach_what_the_budget_allows(name, p, options):
    least = least_distances(p)
    for factor in (0.9, 3.0):
        attack = attacks.make(name, p=p, epsilon=jnp.float32(factor * least), **options)
        found = attack.run(NETWORK, X, LABELS, KEY)
        assert (np.asarray(found.distance) <= factor * least * (1 + 1e-4)).all()
        assert np.asarray(found.success).all() == (factor > 1)


@pytest.mark.dtypes
@pytest.mark.parametrize("name", ["deepfool", "fab", "fast_minimum_norm"])
def test_nearest_points_are_the_nearest(name):
    options = {} if name == "deepfool" else {"num_steps": 40}
    found = attacks.make(name, p=2.0, **options).run(NETWORK, X, LABELS, KEY)
    assert np.asarray(found.success).all()
    # DeepFool goes a little beyond the boundary by design.
    np.testing.assert_allclose(found.distance, least_distances(2.0), rtol=0.04)


def test_accuracy_against_epsilon():
    least = np.sort(least_distances(2.0))
    between = [0.5 * least[0], 0.5 * (least[1] + least[2]), 1.5 * least[-1]]
    found = analysis.robust_accuracy(
        NETWORK, X, LABELS, attack=_pga, epsilons=between, key=KEY
    )
    np.testing.assert_allclose([a.mean for a in found], [1.0, 0.5, 0.0])


def _pga(epsilon):
    return attacks.pga(p=2.0, epsilon=epsilon, num_steps=10)


@pytest.mark.dtypes
@pytest.mark.parametrize("name", ["cnn7", "mlp"])
def test_networks_have_gradients(name):
    module = models.create(name, width=4)
    images = jnp.asarray(RANDOM.uniform(size=(2, 32, 32, 3)), jnp.float32)
    network = opnorm.network(module, jax.jit(module.init)(KEY, images))
    logits, gradient = jax.jit(lambda f, x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(
        network, images
    )
    chex.assert_shape(logits, (2, 10))
    chex.assert_tree_all_finite((logits, gradient))
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("method", ["standard", "data_dependent_snr"])
def test_a_run_is_trained_stored_and_read(method, tmp_path):
    config = training.Config(
        method=method, model="mlp", width=8, train_examples=64, batch_size=32, epochs=1
    )
    result = training.train(config, directory=tmp_path / "run", show_progress=False)
    chex.assert_tree_all_finite(result.params)
    run = training.load_run(tmp_path / "run")
    chex.assert_trees_all_equal(jax.device_get(run.network.params), result.params)
    test_set = data.load("cifar10_mini", split="test", limit=64)
    found = analysis.evaluate_accuracy(run.network, test_set.images, test_set.labels)
    assert 0 <= found.mean <= 1


def test_a_command_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.train", "--model=mlp", "--width=8"]
    command += ["--train_examples=64", "--epochs=1", f"--run={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()
