"""Weighted attacks and attacks with a criterion, against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks, linalg

DRAW = np.random.default_rng(0)
X = DRAW.uniform(0.3, 0.7, (4, 6)).astype(np.float32)
W = DRAW.normal(size=6).astype(np.float32)
SCALE = np.float32([0.5, 2.0, 1.0, 4.0, 0.25, 1.0])
MASK = np.array([True, True, False, True, True, True])
MARGINS = np.float32([0.1, 0.2, 0.4, 0.8])
LABELS = np.zeros(4, int)


def affine(x):
    """Two classes; the margin of each example at X is known."""
    margin = jnp.sum((x - X) * W, axis=1) + MARGINS
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)


def weighted_length(delta, p):
    units = np.where(MASK, np.asarray(delta, float) / SCALE, 0.0)
    return np.linalg.norm(units, p, axis=1)


@pytest.mark.parametrize("p", [1.0, math.inf])
def test_weighted_distances_are_those_of_the_weighted_dual_norm(p) -> None:
    plain = attacks.fab(p=p, num_steps=4, num_targets=1, bounds=None)
    attack = attacks.weighted(plain, scale=SCALE, mask=MASK)
    found = jax.jit(functools.partial(attack.run, affine))(X, LABELS)
    slopes = np.where(MASK, W * SCALE, 0.0)
    exact = MARGINS / np.linalg.norm(slopes, linalg.conjugate_exponent(p))
    assert np.all(found.success)
    # FAB goes a twentieth beyond, and comes back to this factor in the second step.
    np.testing.assert_allclose(found.distance, 1.005213 * exact, rtol=1e-4)
    delta = np.asarray(found.x_adv) - X
    np.testing.assert_allclose(weighted_length(delta, p), found.distance, rtol=1e-4)
    np.testing.assert_array_equal(delta[:, ~MASK], 0)


def test_a_weighted_step_ends_at_budget_and_box_of_each_feature() -> None:
    low, high = X.min(axis=0) - 0.05, np.where(np.arange(6) < 3, np.inf, 0.75)
    epsilon = np.float32([0.05, 0.1, 0.2, 0.4])

    @jax.jit
    def run(epsilon):
        plain = attacks.fgm(p=math.inf, epsilon=epsilon, bounds=(low, high))
        return attacks.weighted(plain, scale=SCALE, mask=MASK).run(affine, X, LABELS)

    found = run(epsilon)
    reach = epsilon[:, None] * np.where(MASK, SCALE, 0.0)
    exact = np.clip(X - reach * np.sign(W), low, high)
    np.testing.assert_allclose(found.x_adv, exact, atol=1e-6)
    np.testing.assert_allclose(
        found.distance, weighted_length(exact - X, math.inf), atol=1e-6
    )


def test_noise_fills_the_ball_of_the_free_entries() -> None:
    x, labels = np.full((2000, 4), 0.5, np.float32), np.zeros(2000, int)
    mask = np.array([True, False, True, False])
    plain = attacks.uniform_noise(p=2.0, epsilon=0.2)
    attack = attacks.weighted(plain, scale=np.float32([1, 1, 2, 1]), mask=mask)
    found = attack.run(jnp.asarray, x, labels, jax.random.key(0))
    delta = np.asarray(found.x_adv) - x
    np.testing.assert_array_equal(delta[:, ~mask], 0)
    length = np.hypot(delta[:, 0], delta[:, 2] / 2) / 0.2
    # P(length <= r) = r^2 in a disc, and both entries are alike.
    for r in (0.3, 0.6, 0.9):
        assert abs(np.mean(length <= r) - r**2) < 0.04
    spread = np.std(delta[:, [0, 2]], axis=0)
    np.testing.assert_allclose(spread, [0.1, 0.2], rtol=0.06)


# Two features: below the line x_0 + 2 x_1 = 2 the network is right.
START = np.float32([[0.0, 0.5], [1.0, 0.2], [-0.8, 0.0], [0.3, 0.7]])
UNITS = np.array([1.5, 1.0])
HALF_BOX = ([-2.0, -np.inf], [0.9, 0.8])


def line(x):
    margin = 2 - x[:, 0] - 2 * x[:, 1]
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)


@pytest.mark.parametrize(
    ("attack", "excess"),
    [
        (attacks.fast_minimum_norm(p=2, bounds=None), 1.03),
        (attacks.fast_minimum_norm(p=2, bounds=HALF_BOX), 1.03),
        (attacks.decoupled_direction(bounds=HALF_BOX), 1.03),
        (
            attacks.carlini_wagner(
                num_steps=300,
                num_searches=5,
                initial_constant=1.0,
                bounds=HALF_BOX,
            ),
            1.05,
        ),
        (attacks.boundary(num_steps=2000, bounds=HALF_BOX), 1.1),
    ],
)
def test_nearest_points_without_and_with_half_a_box(attack, excess) -> None:
    run = jax.jit(functools.partial(attacks.weighted(attack, scale=UNITS).run, line))
    low, high = map(np.float32, attack.stages[0].bounds or (-9.0, 9.0))
    start = np.clip(START, low, high)
    found = run(start, LABELS, jax.random.key(0))
    # The whole of the boundary inside the box, in small steps.
    first = np.linspace(-9, 9, 200_001)
    points = np.stack([first, 1 - first / 2], axis=1)
    points = points[np.all((points >= low) & (points <= high), axis=1)]
    exact = np.linalg.norm((points - start[:, None]) / UNITS, axis=2).min(axis=1)
    assert np.all(found.success)
    assert np.all(found.distance >= exact * (1 - 1e-3))
    assert np.all(found.distance <= exact * excess)
    assert np.all((found.x_adv >= low) & (found.x_adv <= high))


def test_joined_attacks_take_one_scale() -> None:
    members = [attacks.fgm(p=2, epsilon=0.1), attacks.uniform_noise(p=2, epsilon=0.1)]
    joined = attacks.weighted(attacks.first_success(members), scale=SCALE, mask=MASK)
    found = joined.run(affine, X, LABELS, jax.random.key(0))
    slope = np.linalg.norm(np.where(MASK, W * SCALE, 0.0))
    # The box is not reached.
    np.testing.assert_array_equal(found.success, slope > 10 * MARGINS)
    one = attacks.weighted(members[0], scale=SCALE)
    with pytest.raises(ValueError, match=r"differ in scale; give one to the joined"):
        attacks.first_success([members[1], one])
    with pytest.raises(ValueError, match="fgm has a scale already"):
        attacks.weighted(one, scale=2.0)
    with pytest.raises(ValueError, match=r"scale has an array of shape \(6,\)"):
        one.run(affine, X[:, :5], LABELS)
    stage = members[0].stages[0]
    own = attacks.Attack("own", 2.0, (stage,))
    with pytest.raises(ValueError, match="own keeps to a box of its own"):
        attacks.weighted(own, scale=2.0)


# Regression: outputs in large units, as prices are.
UNIT = np.float32(1e4)
TOLERANCE = UNIT


def price(x):
    return UNIT * (x @ jnp.asarray(W))[:, None]


def off(outputs, wanted):
    return jnp.abs(outputs - wanted)[:, 0] - TOLERANCE


def test_regression_has_its_own_loss_and_success() -> None:
    errors = np.float32([0.1, -0.3, 0.9, 1.2]) * UNIT
    wanted = np.asarray(price(X)) - errors[:, None]
    nearest = attacks.fab(p=2, num_steps=4, num_targets=1, bounds=None)
    attack = attacks.with_criterion(nearest, loss=off)
    found = jax.jit(functools.partial(attack.run, price))(X, wanted)
    exact = np.maximum(TOLERANCE - np.abs(errors), 0) / np.linalg.norm(UNIT * W)
    assert np.all(found.success)
    np.testing.assert_allclose(found.distance, 1.005213 * exact, rtol=2e-3, atol=1e-6)

    def squared(outputs, wanted):
        return jnp.sum((outputs - wanted) ** 2, axis=1)

    def wrong(outputs, wanted):
        return off(outputs, wanted) > 0

    def steps(epsilon):
        plain = attacks.pga(p=math.inf, epsilon=epsilon, num_steps=2, keep="success")
        return attacks.with_criterion(plain, loss=squared, success=wrong)

    given = {"attack": steps, "key": jax.random.key(0)}
    reach = np.linalg.norm(UNIT * W, 1) * np.array([0.0, 0.05, 0.2])
    found = analysis.attack_examples(
        price, X, wanted, epsilons=[0.0, 0.05, 0.2], **given
    )
    beyond = np.abs(errors)[None] + reach[:, None] > TOLERANCE
    np.testing.assert_array_equal(found.success, beyond)
    with pytest.raises(ValueError, match=r"labels has shape \(3, 1\); it must be \(4,"):
        attack.run(price, X, wanted[:3])
    with pytest.raises(ValueError, match=r"loss returns shape \(4, 1\); it must be"):
        attacks.with_criterion(nearest, loss=jnp.subtract).run(price, X, wanted)


def test_several_labels_are_left_by_the_nearest_boundary() -> None:
    rows = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=0)
    shift = X @ rows - np.float32([0.1, -0.2, 0.3])

    def f(x):
        return x @ rows - shift

    labels = np.tile(np.array([True, False, True]), (4, 1))

    def flips(outputs, labels):
        return jnp.max(jnp.where(labels, -outputs, outputs), axis=1)

    plain = attacks.deepfool(overshoot=0.0, bounds=None)
    attack = attacks.with_criterion(plain, loss=flips)
    found = jax.jit(functools.partial(attack.run, f))(X, labels)
    assert np.all(found.success)
    # DeepFool lengthens its one step by 1e-4.
    np.testing.assert_allclose(found.distance, 0.1 + 1e-4, rtol=1e-3)
