"""Nearest points of several attacks, against distances in closed form."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks
from opnorm.analysis import nearest

COUNT = 20
BYTES = np.random.default_rng(1).integers(64, 192, (COUNT, 4, 4, 3)).astype(np.uint8)
LABELS = np.zeros(COUNT, np.int32)


def linear(weight, x):
    """Three classes; the third logit is always 0.1 below the second."""
    z = x.reshape(len(x), -1) @ weight
    return jnp.stack([z, -z, -z - 0.1], axis=1)


def problem(p):
    """Returns weights of dual norm 1, and images, one of which is misclassified."""
    weight = np.random.default_rng(0).normal(size=48).astype(np.float32)
    weight /= np.linalg.norm(weight, 2 if p == 2 else 1)
    images = BYTES.copy()
    images[2] = np.where(weight < 0, 191, 64).reshape(4, 4, 3)
    return weight, images


def pga(p, epsilon):
    return attacks.pga(p=p, epsilon=epsilon, num_steps=2, step_size=math.inf)


def minimum_norm(epsilon):
    del epsilon
    return attacks.fast_minimum_norm(p=2.0, num_steps=1)


PGA = {p: functools.partial(pga, p) for p in (2.0, math.inf)}


@pytest.mark.parametrize(
    ("p", "top_k", "factories"),
    [(2.0, 1, [PGA[2.0], minimum_norm]), (math.inf, 2, [PGA[math.inf]])],
)
def test_nearest_points_of_a_linear_network_are_those_in_closed_form(
    p, top_k, factories
) -> None:
    weight, images = problem(p)
    logit = (images.reshape(COUNT, -1) / 255) @ weight.astype(np.float64)
    # The label leaves the first k where its rival, or both, have overtaken it.
    exact = np.maximum(logit if top_k == 1 else logit + 0.05, 0)
    largest = float(np.quantile(exact, 0.8))
    f = jax.tree_util.Partial(linear, jnp.asarray(weight))
    correct = analysis.evaluate_accuracy(
        f, images, LABELS, top_k=top_k, batch_size=8
    ).correct
    np.testing.assert_array_equal(correct, exact > 0)
    assert 0 < np.sum(exact > 0) < COUNT

    def search(rows):
        return analysis.nearest_points(
            f,
            images[rows],
            LABELS[rows],
            attacks=factories,
            epsilons=(largest / 8, largest / 3),
            largest=largest,
            halvings=8,
            top_k=top_k,
            batch_size=8,
            key=jax.random.key(0),
            index=rows,
        )

    found = search(np.arange(COUNT))
    count = len(factories)
    chex.assert_shape(
        found,
        [(COUNT,), images.shape, (count, COUNT), (count,)],
    )
    first, *others = found.by_attack
    reached = exact <= largest
    assert not reached.all()
    np.testing.assert_array_equal(np.isfinite(first), reached)
    np.testing.assert_array_less(exact - 1e-5, first)
    np.testing.assert_allclose(first[reached], exact[reached], atol=largest / 200)
    for later in others:
        # It starts at the misclassified point that the first attack has found.
        assert np.all(later[reached] <= first[reached])
    np.testing.assert_array_equal(found.distance, found.by_attack.min(axis=0))
    moved = (found.points - images / 255).reshape(COUNT, -1)
    length = np.linalg.norm(moved, p, axis=1)
    kept = np.isfinite(found.distance)
    np.testing.assert_allclose(length[kept], found.distance[kept], atol=1e-6)
    np.testing.assert_allclose(length[~kept], 0, atol=1e-6)
    # A part of the pool finds the same.
    part = search(np.arange(12, COUNT))
    np.testing.assert_allclose(part.by_attack, found.by_attack[:, 12:], atol=1e-6)


def test_budgets_are_bisected_between_failures_and_successes() -> None:
    # Row by row: wrong already, within the first budget, beyond it, and never.
    exact = np.array([0.0, 0.05, 0.35, 9.0], np.float32)
    own = np.where(exact > 0, np.inf, 0).astype(np.float32)
    tried: list[list[float]] = [[] for _ in exact]
    pattern = attacks.pga(p=2.0, epsilon=1.0, num_steps=1)
    budgets = nearest._budgets([0.1, 0.2], 0.6, [pattern])
    for rows, epsilon in nearest._bisect(own, budgets, 2):
        for row in rows:
            tried[row].append(float(epsilon[row]))
            if exact[row] <= epsilon[row]:
                own[row] = min(own[row], epsilon[row])
    assert budgets == [0.1, 0.2, 0.4, 0.6]
    expected = [[], [0.1, 0.05, 0.025], [0.1, 0.2, 0.4, 0.3, 0.35], budgets]
    for found, wanted in zip(tried, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": [PGA[2.0], PGA[math.inf]]}, "norms p = 2, inf; all must have"),
        (
            {"attacks": [lambda e: attacks.fgm(p=2.0, epsilon=e, targeted=True)]},
            "which is targeted",
        ),
        ({"attacks": [pga(2.0, 1.0)]}, "must be a function of epsilon"),
        ({"epsilons": ()}, "epsilons is empty; pga has a budget"),
        ({"epsilons": (0.2, 0.1)}, "must be positive numbers that rise"),
        ({"largest": 0.1}, "largest is 0.1; it must be finite, and at least the last"),
        ({"halvings": -1}, "halvings is -1"),
        ({"top_k": 3}, "top_k is 3"),
        ({"index": np.arange(3)}, "index has shape"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    weight, images = problem(2.0)
    given = {"attacks": [PGA[2.0]], "epsilons": (0.1, 0.2), "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        analysis.nearest_points(
            functools.partial(linear, weight), images, LABELS, **given | options
        )
