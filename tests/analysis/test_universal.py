"""Universal perturbations against brute force, and their bounds."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis

COUNT, SIZE, CLASSES = 12, 6, 3
EPSILONS = [0.0, 0.05, 0.2, 0.6]


def network(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def make():
    """A curved network, and images away from the faces of the box."""
    draws = np.random.default_rng(0)
    params = {
        "first": draws.normal(size=(SIZE, 8)).astype(np.float32),
        "second": draws.normal(size=(8, CLASSES)).astype(np.float32),
    }
    images = draws.uniform(0.2, 0.8, (COUNT, SIZE)).astype(np.float32)
    return params, jax.tree_util.Partial(network, params), images


def outputs(params, x):
    first, second = (np.asarray(params[k], np.float64) for k in ("first", "second"))
    return np.tanh(np.asarray(x, np.float64) @ first) @ second


def jacobians(params, x):
    """The stacked Jacobians ``(N d, n)`` by hand, in float64."""
    first, second = (np.asarray(params[k], np.float64) for k in ("first", "second"))
    slope = 1 - np.tanh(np.asarray(x, np.float64) @ first) ** 2
    return np.einsum("nh,bh,hd->bdn", first, slope, second).reshape(-1, SIZE)


def test_the_direction_is_the_best_of_all_sign_vectors():
    params, f, images = make()
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=SIZE)))
    effects = np.linalg.norm(signs @ jacobians(params, images).T, 10, axis=1)
    found = analysis.universal_direction(
        f, images, num_restarts=8, batch_size=5, key=jax.random.key(0)
    )
    assert found.norm == pytest.approx(effects.max(), rel=1e-4)
    best = signs[effects.argmax()]
    assert abs(found.direction @ best) == SIZE
    assert found.residual < 1e-4


def test_changes_and_decisions_are_those_of_the_network():
    params, f, images = make()
    direction = np.linspace(-1, 1, SIZE).astype(np.float32)
    given = {"epsilons": EPSILONS, "batch_size": 5}
    found = analysis.perturbation_response(f, images, direction, q=3.0, **given)
    decided = analysis.fooling(f, images, direction, **given)
    clean = outputs(params, images)
    for row, epsilon in enumerate(EPSILONS):
        moved = outputs(params, np.clip(images + epsilon * direction, 0, 1))
        chex.assert_trees_all_close(
            found.change[row], np.linalg.norm(moved - clean, 3, axis=1), atol=1e-5
        )
        expected = moved.argmax(axis=1) != clean.argmax(axis=1)
        np.testing.assert_array_equal(decided.fooled[row], expected)
    slopes = (jacobians(params, images) @ direction).reshape(COUNT, CLASSES)
    chex.assert_trees_all_close(
        found.slope, np.linalg.norm(slopes, 3, axis=1), rtol=1e-4
    )
    top = np.sort(clean, axis=1)
    chex.assert_trees_all_close(decided.margin, top[:, -1] - top[:, -2], atol=1e-5)
    np.testing.assert_array_equal(decided.decision, clean.argmax(axis=1))
    assert decided.fooled[-1].any()
    # A box of arrays: half of the features are fixed from above.
    box = (np.zeros(SIZE), np.where(np.arange(SIZE) < 3, 0.85, 1.0))
    boxed = analysis.perturbation_response(
        f, images, direction, q=3.0, bounds=box, **given
    )
    moved = outputs(params, np.clip(images + EPSILONS[-1] * direction, *box))
    chex.assert_trees_all_close(
        boxed.change[-1], np.linalg.norm(moved - clean, 3, axis=1), atol=1e-5
    )
    # To first order, and without the box, the change is epsilon times the slope.
    small = analysis.perturbation_response(
        f, images, direction, q=3.0, epsilons=[1e-3], bounds=None, batch_size=5
    )
    chex.assert_trees_all_close(small.change[0], 1e-3 * small.slope, rtol=0.02)


@pytest.mark.parametrize("q", [1.0, 2.0, 10.0, math.inf])
def test_the_fooling_rate_keeps_the_bound_of_the_measured_change(q):
    params, _, images = make()
    draws = np.random.default_rng(3)
    directions = draws.choice([-1.0, 1.0], (40, 1, SIZE))
    clean = outputs(params, images)
    moved = outputs(params, images + 0.4 * directions)
    change = np.linalg.norm(moved - clean, q, axis=2)
    total = np.linalg.norm(change, q, axis=1)
    fooled = (moved.argmax(axis=2) != clean.argmax(axis=1)).mean(axis=1)
    top = np.sort(clean, axis=1)
    bound = analysis.fooling_bound(top[:, -1] - top[:, -2], total, q)
    assert np.all(fooled <= bound)
    assert fooled.max() > 0
    # Nothing changes without a change, but for ties.
    np.testing.assert_array_equal(
        analysis.fooling_bound([0.0, 1.0], [0.0, 1e9], q), [0.5, 1.0]
    )


def test_the_bound_is_attained_where_the_logits_move_against_each_other():
    """Margins 2 and 4 need 1 and 2 of the change in the maximum norm, 2 and 4 in L1."""
    margins = [4.0, 2.0]
    found = analysis.fooling_bound(margins, [0.99, 1.0, 1.99, 2.0], math.inf)
    np.testing.assert_array_equal(found, [0, 0.5, 0.5, 1])
    found = analysis.fooling_bound(margins, [1.99, 2.0, 5.99, 6.0], 1)
    np.testing.assert_array_equal(found, [0, 0.5, 0.5, 1])


def test_noise_has_the_norms_of_the_direction():
    direction = np.arange(SIZE, dtype=np.float32).reshape(2, 3)
    noise = analysis.shuffled_directions(direction, 4, jax.random.key(1))
    chex.assert_shape(noise, (4, 2, 3))
    rows = np.abs(noise).reshape(4, -1)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(SIZE), (4, 1)))
    assert len({tuple(row) for row in noise.reshape(4, -1)}) == 4
    again = analysis.shuffled_directions(direction, 4, jax.random.key(1))
    np.testing.assert_array_equal(noise, again)


def test_bad_arguments_are_refused():
    _, f, images = make()
    with pytest.raises(ValueError, match=r"directions has shape \(5,\)"):
        analysis.fooling(f, images, np.ones(5, np.float32), epsilons=[0.1])
    with pytest.raises(ValueError, match="epsilons is"):
        analysis.fooling(f, images, images[0], epsilons=[-0.1])
    with pytest.raises(ValueError, match="outside of the bounds"):
        analysis.fooling(f, images + 3, images[0], epsilons=[0.1])
    with pytest.raises(ValueError, match=r"\(N,\) and \(E,\)"):
        analysis.fooling_bound([], [0.1], 2)
    with pytest.raises(ValueError, match=r"jax\.random\.key|typed"):
        analysis.universal_direction(f, images, key=0)
