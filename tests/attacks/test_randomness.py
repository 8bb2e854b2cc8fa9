"""Attacks on randomised networks, against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from opnorm import attacks
from opnorm.attacks import parts, randomness
from opnorm.attacks.randomness import Draws

DRAW = np.random.default_rng(0)
X = DRAW.uniform(0.3, 0.7, (4, 6)).astype(np.float32)
W = DRAW.normal(size=(6, 3)).astype(np.float32)
LEADS = np.float32([2.5, 1.0, -0.5])
LABELS = np.zeros(4, int)
SIGMA = 2.0
KEY = jax.random.key(0)


def noisy(x, keys):
    """Three logits, the second with Gaussian noise."""
    noise = jax.vmap(jax.random.normal)(keys)
    return (x @ W + LEADS).at[:, 1].add(SIGMA * noise)


def coin(x, keys):
    """Two classes by a coin, whatever the input is."""
    heads = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.stack([heads, ~heads], axis=1) + 0.0 * x[:, :2]


def steady(x, keys):
    del keys
    return x @ W


def test_gradient_and_rate_are_the_expected_ones() -> None:
    plain = attacks.fgm(p=2, epsilon=0.5, bounds=None)
    attack = attacks.randomized(plain, num_draws=4000, judged_draws=4000)
    found = attack.run(noisy, X, LABELS, KEY)
    # The expectation of the gradient over the noise, by Gauss-Hermite quadrature.
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    noise = SIGMA * nodes[:, None, None] * np.eye(3)[1]
    chances = scipy.special.softmax(X.astype(float) @ W + LEADS + noise, axis=2)
    chance = np.einsum("n,nbk->bk", masses / masses.sum(), chances)
    slopes = (chance - np.eye(3)[0]) @ W.T
    steps = 0.5 * slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    np.testing.assert_allclose(found.x_adv - X, steps, atol=0.01)
    # The gradient without noise is another one.
    bare = (scipy.special.softmax(X @ W + LEADS, axis=1) - np.eye(3)[0]) @ W.T
    bare = 0.5 * bare / np.linalg.norm(bare, axis=1, keepdims=True)
    assert np.abs(bare - steps).max() > 0.03

    logits = np.asarray(found.x_adv, float) @ W + LEADS
    # The third logit alone does not reach the first.
    assert np.all(logits[:, 2] < logits[:, 0])
    exact = scipy.stats.norm.cdf((logits[:, 1] - logits[:, 0]) / SIGMA)
    error = np.sqrt(exact * (1 - exact) / 4000)
    assert np.all(np.abs(found.rate - exact) < 4 * error)
    np.testing.assert_array_equal(found.success, False)


def test_a_deterministic_network_gives_the_results_of_the_plain_attack() -> None:
    labels = np.argmax(X @ W, axis=1)
    given = {"bounds": None, "p": math.inf, "epsilon": 0.2}
    members = [
        attacks.pga(num_steps=3, num_restarts=2, keep="success", loss="dlr", **given),
        attacks.square(num_queries=6, channels="none", **given),
    ]
    plain = attacks.first_success(members)
    attack = attacks.randomized(plain, num_draws=2, judged_draws=3)
    expected = plain.run(lambda x: x @ W, X, labels, KEY)
    found = attack.run(steady, X, labels, KEY)
    assert np.any(expected.success)
    np.testing.assert_array_equal(found.success, expected.success)
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-6)
    np.testing.assert_array_equal(found.rate, expected.success)
    assert expected.rate is None


def test_lucky_draws_are_no_success() -> None:
    x, labels = np.full((400, 2), 0.5, np.float32), np.zeros(400, int)
    plain = attacks.pga(p=2, epsilon=0.1, num_steps=20, keep="success")
    attack = attacks.randomized(plain, num_draws=1, judged_draws=25)
    found = attack.run(coin, x, labels, KEY)
    # Every search has seen the network fail in a draw of its own, and stopped.
    assert np.all(found.steps < 20)
    np.testing.assert_array_equal(found.success, False)
    assert abs(np.mean(found.rate) - 0.5) < 4 * 0.5 / math.sqrt(400 * 25)


def test_choosing_among_points_does_not_raise_success() -> None:
    x, labels = np.full((400, 2), 0.5, np.float32), np.zeros(400, int)
    noise = attacks.uniform_noise(p=2, epsilon=0.1)
    joined = attacks.first_success([noise, noise, noise])
    attack = attacks.randomized(joined, num_draws=1, judged_draws=1, rule="majority")
    found = attack.run(coin, x, labels, KEY)
    # Judged once for each point, 15 of 16 examples would fall.
    assert abs(np.mean(found.success) - 0.5) < 4 * 0.5 / math.sqrt(400)
    np.testing.assert_array_equal(found.success, found.rate == 1)


@pytest.mark.parametrize("rule", ["all", "majority"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_decisive_draw_succeeds_where_enough_draws_do(rule, targeted) -> None:
    table = np.random.default_rng(1).normal(size=(4, 64, 3)).astype(np.float32)
    table[0, :4], labels = np.nan, np.arange(64) % 3
    draws, goal = Draws(4, 4, rule), (targeted, 0.0)

    @jax.jit
    def judged(logits):
        chosen = randomness.decisive(draws, labels, goal, logits)
        return parts.decided(logits[chosen, np.arange(64)], labels, *goal)

    wrong = (table.argmax(axis=2) != labels) | np.isnan(table).any(axis=2)
    count = np.sum(wrong != targeted, axis=0)
    enough = count == 4 if rule == "all" else count > 2
    np.testing.assert_array_equal(judged(table), enough)
    assert 0 < enough.sum() < 64


def test_each_example_step_and_stage_has_draws_of_its_own() -> None:
    def uniform(x, keys):
        del x
        return jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)

    def put(state, logits, i):
        return state.at[:, i].set(logits)

    stage = attacks.Stage(
        "record",
        num_steps=3,
        init=lambda f, problem: put(jnp.zeros((4, 4, 2)), f(problem.x), 0),
        step=lambda f, problem, state, i: put(state, f(problem.x), i + 1),
        finish=lambda problem, state: problem.x,
    )
    drawn = randomness.draw_stage(stage, Draws(1, 1, "all"))

    @jax.jit
    def record(keys):
        problem = attacks.Problem(jnp.asarray(X), jnp.asarray(LABELS), keys, None)
        state = drawn.init(uniform, problem)
        return drawn.advance(uniform, problem, state, 0, 3)[0]

    keys = parts.fold_in(KEY, jnp.arange(4))
    seen = record(keys)
    assert len(np.unique(seen)) == 32
    # The draws of an example depend on its key alone.
    np.testing.assert_array_equal(record(keys[::-1]), seen[::-1])


def test_weights_and_a_criterion_fit_a_randomised_network() -> None:
    scale = np.float32([1, 2, 4, 1, 2, 0])

    def first(outputs, labels):
        del labels
        return -outputs[:, 0]

    plain = attacks.fgm(p=math.inf, epsilon=0.1, bounds=(-9.0, 9.0))
    attack = attacks.randomized(plain, num_draws=2)
    attack = attacks.with_criterion(attacks.weighted(attack, scale=scale), loss=first)
    found = attack.run(noisy, X, LABELS, KEY)
    exact = X - 0.1 * scale * np.sign(W[:, 0])
    np.testing.assert_allclose(found.x_adv, exact, atol=1e-6)
    np.testing.assert_allclose(found.distance, 0.1, rtol=1e-5)


def test_rows_on_an_explicit_mesh_have_the_results_of_one_device() -> None:
    attack = attacks.randomized(attacks.fgm(p=2, epsilon=0.5, bounds=None), num_draws=3)
    mesh = jax.make_mesh((2,), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    found = attack.run(
        noisy, jax.device_put(X, rows), jax.device_put(LABELS, rows), KEY
    )
    expected = attack.run(noisy, X, LABELS, KEY)
    np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-6)
    np.testing.assert_array_equal(found.rate, expected.rate)


def test_what_does_not_fit_is_refused() -> None:
    plain = attacks.fgm(p=2, epsilon=0.5)
    attack = attacks.randomized(plain)
    with pytest.raises(ValueError, match=r"must be f\(x, keys\) with a typed key"):
        attack.run(lambda x: x @ W, X, LABELS, KEY)
    with pytest.raises(ValueError, match="key is None"):
        attack.run(noisy, X, LABELS)
    with pytest.raises(ValueError, match="deepfool has no budget; the shortest point"):
        attacks.randomized(attacks.deepfool())
    with pytest.raises(ValueError, match="fgm is randomised already"):
        attacks.randomized(attack)
    with pytest.raises(ValueError, match="rule is 'any'; it may be 'all' or"):
        attacks.randomized(plain, rule="any")
    with pytest.raises(ValueError, match="judged_draws is 0"):
        attacks.randomized(plain, judged_draws=0)
    with pytest.raises(ValueError, match=r"differ in draws; give one"):
        attacks.first_success([plain, attack])


def test_the_rand_version_has_two_searches_over_20_draws() -> None:
    make = functools.partial(attacks.make, "auto_attack", p=2, epsilon=0.5)
    attack = make(version="rand")
    names = [stage.name for stage in attack.stages]
    assert names == ["apgd_cross_entropy", "apgd_dlr"]
    assert attack.draws == Draws(20, 20, "all")
    with pytest.raises(ValueError, match="version is 'plus'; it may be 'standard' or"):
        make(version="plus")
