"""Targeted attacks that are made of untargeted ones, and networks of one logit."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from opnorm import attacks, linalg
from opnorm.attacks.criteria import Criterion, _agreeing, pose

X = np.random.default_rng(0).uniform(0.4, 0.6, (4, 5)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
# Every example has its classes in the order 0, 1, 2.
SHIFT = X @ ROWS - np.float32([0.3, 0.2, 0.0])
TARGETS = np.array([1, 2, 1, 2])


def network(x):
    return x @ ROWS - SHIFT


def constraints(target):
    """The region of a class: ``slopes @ delta >= gaps``."""
    others = [k for k in range(3) if k != target]
    slopes = (ROWS[:, [target]] - ROWS[:, others]).T.astype(float)
    leads = np.array([0.3, 0.2, 0.0])
    return slopes, leads[others] - leads[target]


def least_distance(target):
    """How far the region of a class is in L2, by mathematical programming."""
    slopes, gaps = constraints(target)
    found = scipy.optimize.minimize(
        lambda d: d @ d,
        np.zeros(5),
        jac=lambda d: 2 * d,
        constraints={"type": "ineq", "fun": lambda d: slopes @ d - gaps},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.sqrt(found.fun)


@pytest.mark.parametrize(
    ("make", "excess"),
    [
        (functools.partial(attacks.fab, p=2.0, num_steps=40, bounds=None), 1.02),
        (functools.partial(attacks.deepfool, bounds=None), 1.6),
        (functools.partial(attacks.boundary, num_steps=1500, bounds=None), 1.2),
        # Its barrier holds points off boundaries that are as near as these.
        (functools.partial(attacks.log_barrier, bounds=None), 1.5),
    ],
)
def test_targets_are_reached_by_a_short_way(make, excess) -> None:
    attack = make(targeted=True)
    assert attack.targeted
    run = jax.jit(functools.partial(attack.run, network))
    found = run(X, TARGETS, jax.random.key(0))
    least = np.array([least_distance(target) for target in TARGETS])
    reached = np.argmax(np.asarray(network(found.x_adv)), axis=1)
    np.testing.assert_array_equal(reached, TARGETS)
    assert np.all(found.success)
    assert np.all(found.distance >= least * (1 - 1e-4))
    assert np.all(found.distance <= least * excess + 2e-4)


def test_square_reaches_targets_within_the_budget() -> None:
    # The budget at which the first corner of the cube lies in the target's region.
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
    least = []
    for target in TARGETS:
        slopes, gaps = constraints(target)
        gains = corners @ slopes.T
        budgets = np.where(gains > 0, gaps / np.where(gains > 0, gains, 1), np.inf)
        budgets = np.where((gains <= 0) & (gaps < 0), -np.inf, budgets)
        least.append(budgets.max(axis=1).min())
    least = np.array(least)

    @jax.jit
    def run(epsilon):
        attack = attacks.square(
            p=math.inf, epsilon=epsilon, num_queries=200, targeted=True
        )
        return attack.run(network, X, TARGETS, jax.random.key(0))

    for factor, reaches in ((1.05, True), (0.98, False)):
        found = run((factor * least).astype(np.float32))
        np.testing.assert_array_equal(found.success, reaches)


def test_a_network_of_nan_reaches_no_target() -> None:
    attack = attacks.deepfool(num_steps=2, targeted=True)

    def f(x):
        return jnp.full((len(x), 3), jnp.nan)

    found = attack.run(f, X, TARGETS)
    np.testing.assert_array_equal(found.success, False)
    np.testing.assert_array_equal(found.x_adv, X)


def test_success_decides_the_sign_and_the_loss_the_order() -> None:
    losses = np.float32([-1e8, -3.0, -0.5, 0.0, 0.5, 3.0, np.nan, np.inf])
    hits = np.arange(8) % 2 == 0
    criterion = Criterion(lambda z, _: z[:, 0], lambda _, labels: labels)

    def second(hits, at):
        f, labels = pose(criterion, lambda z: z, jnp.ones((8, 1)), hits, targeted=False)
        np.testing.assert_array_equal(labels, 0)
        return f(at)[:, 1]

    at = jnp.asarray(losses)[:, None]
    np.testing.assert_array_equal(second(hits, at) > 0, hits)
    for same in (np.ones(8, bool), np.zeros(8, bool)):
        values = np.asarray(second(same, at))
        assert np.all(np.diff(values[:6]) > 0)
        # NaN is the lowest loss, and infinity the highest.
        assert values[6] <= values[0]
        assert values[7] >= values[5]
    slopes = jax.grad(lambda at: jnp.sum(second(hits, at)))(at)
    np.testing.assert_array_equal(slopes[:6], 1)


def test_one_logit_is_two() -> None:
    weights = jnp.asarray([[3.0], [4.0]])
    logit = jax.tree_util.Partial(lambda w, x: x @ w - 2.0, weights)
    f = attacks.binary(logit)
    assert linalg.keeps_programs(f)
    x, labels = np.float32([[0.5, 0.5], [0.2, 0.1]]), np.array([1, 0])
    np.testing.assert_allclose(f(x), [[0, 1.5], [0, -1.0]], atol=1e-6)
    found = attacks.deepfool(overshoot=0.0, bounds=None).run(f, x, labels)
    np.testing.assert_allclose(found.distance, [0.3, 0.2], atol=2e-4)
    with pytest.raises(ValueError, match=r"returns shape \(2, 2\); it must be one log"):
        attacks.binary(lambda x: x)(x)


def test_a_label_is_reached_where_the_network_decides_for_it() -> None:
    # The first of equal logits is the decision; NaN is none.
    logits = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [np.nan, 2.0]], np.float32)
    found = attacks.reached(jnp.asarray(logits), jnp.array([0, 1, 1, 1]))
    np.testing.assert_array_equal(found, [True, False, True, False])
    # The loss alone does not count the tie.
    assert attacks.lead(jnp.asarray(logits[:1]), jnp.array([0]))[0] <= 0


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(attacks.deepfool, bounds=None),
        functools.partial(
            attacks.carlini_wagner,
            num_steps=30,
            num_searches=3,
            initial_constant=1.0,
            confidence=0.3,
            bounds=None,
        ),
    ],
)
def test_a_success_that_the_loss_tells_too_changes_nothing(make) -> None:
    attack = make()

    @jax.jit
    def run():
        return [
            attacks.with_criterion(attack, loss=attacks.lead, success=success)
            .run(network, X, np.ones(4, int), jax.random.key(0))
            .distance
            for success in (None, attacks.reached)
        ]

    alone, both = run()
    assert np.all(alone > 0)
    np.testing.assert_allclose(both, alone, rtol=2e-3)


def test_values_have_the_sign_of_success_and_the_order_of_losses() -> None:
    loss = np.float32([-1e30, -3, -0.5, 0, 0.5, 3, 1e30])
    judge = Criterion(attacks.lead, lambda outputs, labels: labels)

    @jax.jit
    def run(hit, step):
        labels = jnp.full(len(loss), hit)
        return _agreeing(judge, loss, labels, jnp.asarray(loss), step)

    for hit, step in itertools.product((True, False), (0.01, 1.0)):
        sign = 1 if hit else -1
        values = np.asarray(run(hit, step))
        assert np.all(sign * values > 0)
        assert np.all(np.diff(values) > 0)
        same = sign * loss > 0
        np.testing.assert_allclose(
            values[same], sign * np.hypot(np.float64(loss[same]), step), rtol=1e-6
        )
