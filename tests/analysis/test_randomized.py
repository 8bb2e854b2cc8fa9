"""Accuracy of randomised networks before and after attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from opnorm import analysis, attacks

COUNT, DRAWS, SIGMA = 60, 30, 0.2
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.3, 0.7, (COUNT, 2, 2, 1)).astype(np.float32)
SLOPE = np.float32([0.4, -0.3, 0.2, 0.1])
LABELS = np.zeros(COUNT, int)
KEY = jax.random.key(1)


def margin(x):
    return x.reshape(len(x), -1) @ SLOPE


def noisy(x, keys):
    noise = jax.vmap(jax.random.normal)(keys)
    first = margin(x) + SIGMA * noise
    return jnp.stack([first, -first], axis=1)


def coin(x, keys):
    heads = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.stack([heads, ~heads], axis=1) + 0.0 * x.reshape(len(x), -1)[:, :2]


def attack(epsilon):
    plain = attacks.fgm(p=jnp.inf, epsilon=epsilon)
    return attacks.randomized(plain, num_draws=2, judged_draws=DRAWS)


def members(epsilon):
    given = {"p": 2.0, "epsilon": epsilon}
    return attacks.first_success(
        [attacks.fgm(**given), attacks.pga(num_steps=4, keep="success", **given)]
    )


def randomized_members(epsilon):
    return attacks.randomized(members(epsilon), num_draws=2, judged_draws=3)


def test_robust_accuracy_is_the_mean_over_fresh_draws() -> None:
    epsilons = [0.0, 0.1, 0.25]
    given = {"attack": attack, "epsilons": epsilons, "key": KEY}
    curve = analysis.robust_accuracy(noisy, IMAGES, LABELS, batch_size=16, **given)
    reach = np.abs(SLOPE).sum() * np.array(epsilons)
    exact = scipy.stats.norm.cdf((margin(IMAGES) - reach[:, None]) / SIGMA)
    for found, chance in zip(curve, exact, strict=True):
        spread = np.sum(chance * (1 - chance)) / DRAWS / COUNT**2
        assert abs(found.mean - chance.mean()) < 4 * np.sqrt(spread)
        # The standard error is over examples, too.
        total = spread + np.var(chance, ddof=1) / COUNT
        np.testing.assert_allclose(found.standard_error, np.sqrt(total), rtol=0.3)
        counts = DRAWS * found.correct
        np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
    # Keys of its own for each example: the size of the batch changes nothing.
    small = analysis.attack_examples(noisy, IMAGES, LABELS, batch_size=8, **given)
    right = [found.correct for found in curve]
    np.testing.assert_allclose(1 - small.rate, right, atol=1e-6)
    assert small.draws == attacks.Draws(2, DRAWS, "all")
    np.testing.assert_array_equal(small.success, small.rate == 1)


def test_a_coin_is_right_in_half_of_the_draws() -> None:
    def search(epsilon):
        plain = attacks.pga(p=2, epsilon=epsilon, num_steps=20, keep="success")
        return attacks.randomized(plain, num_draws=1, judged_draws=DRAWS)

    (found,) = analysis.robust_accuracy(
        coin, IMAGES, LABELS, attack=search, epsilons=[0.1], batch_size=8, key=KEY
    )
    error = 0.5 / np.sqrt(DRAWS * COUNT)
    assert abs(found.mean - 0.5) < 4 * error
    np.testing.assert_allclose(found.standard_error, error, rtol=0.3)


def test_a_deterministic_network_gives_the_results_of_the_plain_attack() -> None:
    def steady(x, keys):
        del keys
        return bare(x)

    def bare(x):
        return jnp.stack([margin(x), 0.1 - margin(x), 0.0 * margin(x)], axis=1)

    given = {"epsilons": [0.05, 0.2], "batch_size": 8, "key": KEY}
    given["keep_points"] = True
    found = analysis.attack_examples(
        steady, IMAGES, LABELS, attack=randomized_members, **given
    )
    expected = analysis.attack_examples(bare, IMAGES, LABELS, attack=members, **given)
    assert 0 < expected.success.sum() < expected.success.size
    for name in ("success", "stage", "steps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-5)
    np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-6)
    assert expected.rate is None


def test_other_measurements_refuse_a_randomised_attack() -> None:
    given = {"key": KEY, "batch_size": COUNT}
    with pytest.raises(ValueError, match="fgm, randomised; only robust_accuracy and"):
        analysis.nearest_points(
            noisy, IMAGES, LABELS, attacks=[attack], epsilons=[0.1], **given
        )
    with pytest.raises(ValueError, match="fgm, randomised; only robust_accuracy and"):
        analysis.perturbations(
            noisy, IMAGES, LABELS, attack=attack, epsilon=0.1, **given
        )
    with pytest.raises(ValueError, match=r"must be f\(x, keys\) with a typed key"):
        analysis.robust_accuracy(
            margin, IMAGES, LABELS, attack=attack, epsilons=[0.1], **given
        )
    half = analysis.Accuracy(0.5, 0.1, np.full(4, 0.5))
    with pytest.raises(ValueError, match="must hold bool; a randomised network"):
        analysis.conditional_accuracy(half, half)


def test_clean_accuracy_is_the_mean_over_draws() -> None:
    given = {"num_draws": 400, "key": KEY}
    found = analysis.randomized_accuracy(noisy, IMAGES, LABELS, **given)
    exact = scipy.stats.norm.cdf(margin(IMAGES) / SIGMA)
    assert np.all(
        np.abs(found.correct - exact) < 5 * np.sqrt(exact * (1 - exact) / 400)
    )
    part = analysis.randomized_accuracy(
        noisy, IMAGES[40:], LABELS[40:], index=np.arange(40, COUNT), **given
    )
    np.testing.assert_array_equal(part.correct, found.correct[40:])
    with pytest.raises(ValueError, match=r"must be f\(x, keys\) with a typed key"):
        analysis.randomized_accuracy(margin, IMAGES, LABELS, **given)
