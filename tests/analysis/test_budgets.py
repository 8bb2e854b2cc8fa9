"""A success counts only within its budget, whatever the attack and the entry point."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks
from opnorm.attacks.parts import within_budget

COUNT = 8
W = np.random.default_rng(0).normal(size=6).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (COUNT, 2, 1, 3)).astype(np.float32)
MARGINS = (IMAGES.reshape(COUNT, 6).astype(np.float64) - 0.5) @ W
LABELS = (MARGINS < 0).astype(int)
# Two attacks without a budget, one of them random, and one with a budget of its own.
# The points of every attack are tested in tests/attacks/test_named_attacks.py.
OPTIONS = {
    "boundary": {"num_steps": 30},
    "deepfool": {"num_steps": 3},
    "pga": {"num_steps": 3},
}


def affine(w, x):
    margin = (x.reshape(len(x), -1) - 0.5) @ w
    return jnp.stack([margin, -margin], axis=1) / 2


F = jax.tree_util.Partial(affine, W)


def exact_distances(p):
    """Returns distances to the plane, which the box does not cut off here."""
    dual = math.inf if p == 1 else p / (p - 1) if p < math.inf else 1
    return np.abs(MARGINS) / np.linalg.norm(W.astype(np.float64), dual)


def lengths(delta, p):
    return np.linalg.norm(np.float64(delta).reshape(*delta.shape[:-3], -1), p, axis=-1)


def far_point(length, epsilon):
    """An attack that ends at this L2 distance behind the plane, whatever its budget."""
    step = -length * np.sign(MARGINS)[:, None] * W / np.linalg.norm(W)
    step = step.reshape(IMAGES.shape).astype(np.float32)
    stage = attacks.Stage(
        name="far",
        num_steps=0,
        init=lambda f, problem: problem.x + step,
        step=lambda f, problem, state, i: state,
        finish=lambda problem, state: state,
    )
    del epsilon
    return attacks.Attack(name="far", p=2.0, stages=(stage,))


far = functools.partial(far_point, 0.75)


def near_after_far(epsilon):
    return attacks.first_success([far(epsilon), far_point(0.5, epsilon)])


def attack_all(attack, **options):
    return analysis.attack_examples(
        F,
        IMAGES,
        LABELS,
        attack=attack,
        batch_size=COUNT,
        key=jax.random.key(0),
        keep_points=True,
        **options,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_attack_breaks_within_the_budget_only(name) -> None:
    exact = exact_distances(2.0)
    epsilons = [0.5 * exact.min(), float(np.median(exact)), 2.4]

    def attack(epsilon):
        given = epsilon if attacks.needs_budget(name) else None
        return attacks.make(name, p=2.0, epsilon=given, **OPTIONS[name])

    found = attack_all(attack, epsilons=epsilons)
    length = lengths(found.x_adv - IMAGES, 2.0)
    logits = F(found.x_adv.reshape(-1, 6))
    wrong = np.asarray(jnp.argmax(logits, axis=1)).reshape(3, COUNT) != LABELS
    budgets = np.array(epsilons)[:, None]
    assert not np.any(found.success & (exact > budgets * (1 + 1e-5)))
    assert np.all(wrong[found.success])
    assert np.all(length <= budgets * (1 + 1e-5))
    reached = found.distance[found.success]
    np.testing.assert_allclose(reached, length[found.success], rtol=1e-5)
    assert np.all(np.isinf(found.distance[~found.success]))
    assert found.success[2].any()


def test_a_point_beyond_the_budget_counts_nowhere() -> None:
    assert np.all(exact_distances(2.0) < 0.5)
    epsilons, expected = [0.1, 0.7499, 0.75], [False, False, True]
    found = attack_all(far, epsilons=epsilons)
    for row, within in enumerate(expected):
        assert np.all(found.success[row] == within)
        moved = lengths(found.x_adv[row] - IMAGES, 2.0)
        np.testing.assert_allclose(moved, 0.75 * within, atol=1e-6)
        np.testing.assert_allclose(
            found.distance[row], 0.75 if within else math.inf, rtol=1e-6
        )
        assert np.all(found.stage[row] == (0 if within else -1))
    worst = analysis.worst_over_budgets(found, epsilons)
    np.testing.assert_array_equal(worst, found.success)
    given = {"attack": far, "batch_size": COUNT, "key": jax.random.key(0)}
    curve = analysis.robust_accuracy(F, IMAGES, LABELS, epsilons=epsilons, **given)
    assert [point.mean for point in curve] == [1.0, 1.0, 0.0]
    for epsilon, within in zip(epsilons, expected, strict=True):
        delta = analysis.perturbations(F, IMAGES, LABELS, epsilon=epsilon, **given)
        np.testing.assert_allclose(lengths(delta, 2.0), 0.75 * within, atol=1e-6)


def test_an_ensemble_goes_on_after_a_point_beyond_the_budget() -> None:
    found = attack_all(near_after_far, epsilons=[0.4, 0.5, 0.75])
    np.testing.assert_array_equal(found.stage[:, 0], [-1, 1, 0])
    np.testing.assert_array_equal(found.stage, np.repeat(found.stage[:, :1], 8, axis=1))


def test_without_budgets_any_distance_counts() -> None:
    found = attack_all(lambda _: attacks.deepfool(num_steps=3))
    assert found.success.shape == (1, COUNT)
    assert found.success.all()
    np.testing.assert_allclose(found.distance[0], exact_distances(2.0), rtol=0.03)
    with pytest.raises(ValueError, match="epsilons has 2 budgets; attacked has 1"):
        analysis.worst_over_budgets(found, [0.1, 0.2])
    with pytest.raises(ValueError, match="epsilons is None; it must be a list"):
        analysis.robust_accuracy(
            F, IMAGES, LABELS, attack=far, epsilons=None, key=jax.random.key(0)
        )
    with pytest.raises(ValueError, match="epsilon is None; far has a budget"):
        analysis.perturbations(
            F, IMAGES, LABELS, attack=far, epsilon=None, key=jax.random.key(0)
        )


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_rounding_never_costs_a_point_of_the_budgets_ball(p) -> None:
    x = np.random.default_rng(2).uniform(0, 1, (4, 3072)).astype(np.float32)
    step = np.random.default_rng(3).normal(size=x.shape)
    for epsilon in (1e-3, 0.5, 20.0):
        exact = epsilon * step / np.linalg.norm(step, p, axis=1, keepdims=True)
        distance = np.linalg.norm((x + exact).astype(np.float32) - x, p, axis=1)
        assert np.all(within_budget(distance.astype(np.float32), epsilon, x, p))
        beyond = np.float32(epsilon + 1e-4 * (epsilon + np.linalg.norm(x, p, axis=1)))
        assert not np.any(within_budget(beyond, epsilon, x, p))
