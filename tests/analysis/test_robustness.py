"""Attacks on a data set, with compaction, batch sizes, keys, devices and budgets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks

W = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.2, 0.8, (50, 2, 2, 3)).astype(np.float32)


def network(variables, x):
    """Three smooth classes."""
    return jnp.tanh(x.reshape(len(x), -1) @ variables) * 3


F = jax.tree_util.Partial(network, W)
LABELS = np.asarray(jnp.argmax(F(IMAGES), axis=1))
LABELS = np.where(np.arange(50) % 10 == 0, (LABELS + 1) % 3, LABELS)


def pga(epsilon):
    return attacks.pga(p=2.0, epsilon=epsilon, num_steps=25, keep="success")


def apgd(epsilon):
    return attacks.apgd(p=2.0, epsilon=epsilon, num_steps=25)


def deterministic(epsilon):
    return attacks.pga(
        p=2.0, epsilon=epsilon, num_steps=12, random_start=False, keep="success"
    )


def pair(epsilon):
    return attacks.first_success([deterministic(epsilon), pga(epsilon)])


def nearest(epsilon):
    """An attack without a budget, whose points beyond one do not count."""
    del epsilon
    return attacks.deepfool(p=2.0, num_steps=8)


def run(attack, images=IMAGES, labels=LABELS, **options):
    # Each batch size is compiled: 16 and 8 here, and 8 alone for some attacks.
    options = {
        "epsilons": [0.05, 0.2],
        "batch_size": 16,
        "key": jax.random.key(0),
    } | options
    return analysis.attack_examples(
        F, images, labels, attack=attack, keep_points=True, **options
    )


def together(attack):
    """The same attack on all examples at once, by the library alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(50))
    return jax.jit(lambda epsilon: attack(epsilon).run(F, IMAGES, LABELS, keys))


@pytest.mark.parametrize(
    ("attack", "batch_size"), [(pga, 16), (apgd, 16), (pair, 8), (nearest, 8)]
)
def test_compaction_finds_what_the_attack_finds_on_all_at_once(
    attack, batch_size
) -> None:
    found = run(attack, batch_size=batch_size)
    search = together(attack)
    for row, epsilon in enumerate([0.05, 0.2]):
        whole = search(jnp.full(50, epsilon))
        wrong = np.asarray(jnp.argmax(F(IMAGES), axis=1)) != LABELS
        within = np.asarray(whole.distance) <= epsilon * (1 + 1e-5)
        expected = (np.asarray(whole.success) & within) | wrong
        np.testing.assert_array_equal(found.success[row], expected)
        searched = expected & ~wrong
        np.testing.assert_allclose(
            found.x_adv[row][searched], whole.x_adv[searched], atol=1e-5
        )
        # Nothing is done to an example that is wrong already, or that stands.
        still = ~searched
        np.testing.assert_array_equal(found.x_adv[row][still], IMAGES[still])
        assert np.all(found.distance[row][wrong] == 0)
        assert np.all(np.isinf(found.distance[row][~expected]))


def test_every_reported_point_is_wrong_within_its_budget() -> None:
    # Arrays of JAX, which cannot be written into, are taken too.
    found = run(apgd, images=jnp.asarray(IMAGES))
    for row, epsilon in enumerate([0.05, 0.2]):
        decisions = np.asarray(jnp.argmax(F(found.x_adv[row]), axis=1))
        np.testing.assert_array_equal(decisions != LABELS, found.success[row])
        length = np.linalg.norm((found.x_adv[row] - IMAGES).reshape(50, -1), axis=1)
        assert length.max() <= epsilon * (1 + 1e-5)
        hit = found.success[row]
        np.testing.assert_allclose(found.distance[row][hit], length[hit], atol=1e-6)


def test_results_do_not_depend_on_batch_size_or_order() -> None:
    whole = run(apgd)
    small = run(apgd, batch_size=8)
    np.testing.assert_array_equal(whole.success, small.success)
    np.testing.assert_allclose(whole.x_adv, small.x_adv, atol=1e-5)
    order = np.random.default_rng(2).permutation(50)
    mixed = run(apgd, IMAGES[order], LABELS[order], index=order)
    np.testing.assert_array_equal(mixed.success, whole.success[:, order])
    np.testing.assert_allclose(mixed.x_adv, whole.x_adv[:, order], atol=1e-5)


def confident(epsilon):
    del epsilon
    return attacks.carlini_wagner(
        num_steps=20, num_searches=2, initial_constant=1.0, confidence=0.3
    )


def test_what_is_wrong_by_less_than_the_confidence_is_attacked() -> None:
    logits = np.sort(np.asarray(F(IMAGES)), axis=1)
    # With the second class as label, each is wrong by the difference of two logits.
    second = np.argsort(np.asarray(F(IMAGES)), axis=1)[:, 1].astype(np.int32)
    lead = logits[:, 2] - logits[:, 1]
    rows = np.argsort(lead)[[0, 1, 2, 3, -4, -3, -2, -1]]
    found = run(confident, IMAGES[rows], second[rows], epsilons=None, batch_size=8)
    assert np.all(lead[rows[:4]] < 0.3)
    assert np.all(lead[rows[4:]] > 0.3)
    assert found.success.all()
    np.testing.assert_array_equal(found.distance[0] > 0, np.arange(8) < 4)
    reached = np.array(F(found.x_adv[0]))
    own = reached[np.arange(8), second[rows]]
    reached[np.arange(8), second[rows]] = -np.inf
    assert np.all(reached.max(axis=1) - own >= 0.3 - 1e-6)


def test_rows_that_are_done_cost_nothing_more() -> None:
    easy = run(apgd, epsilons=[3.0])
    hard = run(apgd, epsilons=[1e-4])
    assert easy.success.all()
    assert not hard.success.all()
    assert hard.row_steps >= 26 * np.sum(~hard.success)
    assert easy.row_steps < hard.row_steps / 5
    # Those that fell took the steps that they are reported with.
    assert easy.steps.max() < 26
    assert set(hard.steps[~hard.success]) == {26}


def test_minimal_distances_take_no_budget() -> None:
    def fab(_):
        return attacks.fab(p=2.0, num_steps=20)

    found = run(fab, epsilons=None, batch_size=8)
    # A point may lie on the boundary up to one rounding, and another program's
    # rounding then decides that it fails.
    reached = found.success[0]
    assert np.sum(~reached) <= 1
    excess = attacks.margin(F(found.x_adv[0]), jnp.asarray(LABELS))
    assert np.all(excess[reached] > -1e-5)
    # Nothing is found within a budget below the smallest distance, except for 1%.
    fallen = run(apgd, epsilons=[0.2]).success[0]
    assert np.all(found.distance[0][fallen & reached] <= 0.2 * 1.01)


def test_smaller_budgets_count_for_larger_ones() -> None:
    success = np.array([[True, False, False], [False, False, True]])
    distance = np.where(success, 0.1, math.inf)
    attacked = analysis.Attacked(success, distance, success, success, None, 0)
    worst = analysis.worst_over_budgets(attacked, [0.1, 0.2])
    np.testing.assert_array_equal(worst, [[True, False, False], [True, False, True]])
    worst = analysis.worst_over_budgets(attacked, [0.2, 0.1])
    np.testing.assert_array_equal(worst, [[True, False, True], [False, False, True]])


def test_progress_is_told_up_to_the_end() -> None:
    told = []
    run(pair, batch_size=8, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 4


def test_uint8_images_are_scaled() -> None:
    images = np.round(IMAGES * 255).astype(np.uint8)
    found = run(pga, images, batch_size=8)
    same = run(pga, images.astype(np.float32) / 255, batch_size=8)
    np.testing.assert_array_equal(found.success, same.success)
    np.testing.assert_allclose(found.x_adv, same.x_adv, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": []}, "epsilons is"),
        ({"epsilons": [-0.1]}, "epsilons is"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"index": np.arange(3)}, "index has shape"),
        ({"labels": LABELS[:3]}, "images and labels"),
        ({"images": IMAGES.astype(int)}, "images has dtype"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(pga, **options)
