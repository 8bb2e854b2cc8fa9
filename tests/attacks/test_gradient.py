"""FGM and PGA on affine models, where the worst perturbation is known exactly."""

import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg

INF = math.inf
EXPONENTS = (1.0, 1.5, 2.0, 3.0, INF)
EPSILON = 0.1


def weights(n=20, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), (n,), dtype)


def affine(w, bias=0.3):
    """Two classes with margin z_0 - z_1 = <w, x> + bias."""

    def f(x):
        half = 0.5 * (x.reshape(len(x), -1) @ w + bias)
        return jnp.stack([half, -half], axis=1)

    return f


def inputs(batch=5, n=20, dtype=jnp.float32):
    return jax.random.uniform(
        jax.random.key(1), (batch, n), dtype, minval=0.4, maxval=0.6
    )


ZEROS = jnp.zeros(5, jnp.int32)


def margins(f, x):
    logits = f(x)
    return logits[:, 0] - logits[:, 1]


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("loss", ("cross_entropy", "margin"))
@pytest.mark.parametrize("name", ("fgm", "pga"))
def test_the_margin_falls_by_epsilon_times_the_dual_norm(p, loss, name):
    with jax.enable_x64(True):
        w, x = weights(dtype=jnp.float64), inputs(dtype=jnp.float64)
        f = affine(w)
        options = {} if name == "fgm" else {"num_steps": 20, "random_start": False}
        attack = getattr(attacks, name)(p=p, epsilon=EPSILON, loss=loss, **options)
        attacked = attack(f, x, ZEROS)
        drop = margins(f, x) - margins(f, attacked)
        dual = linalg.conjugate_exponent(p)
        expected = EPSILON * linalg.norm(w[None], dual)[0]
        np.testing.assert_allclose(drop, expected, rtol=1e-9)
        worst = -EPSILON * linalg.dual_map(w[None], dual)
        np.testing.assert_allclose(
            attacked - x, jnp.broadcast_to(worst, x.shape), atol=1e-9
        )


@pytest.mark.parametrize("p", (2.0, INF))
def test_a_random_start_is_forgotten(p):
    f, x = affine(weights()), inputs()
    attack = attacks.pga(p=p, epsilon=EPSILON, num_steps=100)
    attacked = attack(f, x, ZEROS, jax.random.key(3))
    drop = margins(f, x) - margins(f, attacked)
    best = EPSILON * linalg.norm(weights()[None], linalg.conjugate_exponent(p))
    np.testing.assert_allclose(drop, jnp.broadcast_to(best, drop.shape), rtol=1e-3)


def test_targeted_attacks_descend_to_their_labels():
    f, x = affine(weights()), inputs()
    options = {"p": 2.0, "epsilon": EPSILON}
    away = attacks.fgm(**options)(f, x, ZEROS)
    towards = attacks.fgm(targeted=True, **options)(f, x, ZEROS + 1)
    np.testing.assert_allclose(away, towards, atol=1e-6)
    back = attacks.fgm(targeted=True, **options)(f, x, ZEROS)
    np.testing.assert_allclose(back - x, x - away, atol=1e-6)


@pytest.mark.parametrize("step_size", (0.01, 0.03))
def test_a_step_has_its_length(step_size):
    f, x = affine(weights()), inputs()
    for p in EXPONENTS:
        attacked = attacks.pga(
            p=p, epsilon=1.0, num_steps=2, step_size=step_size, random_start=False
        )(f, x, ZEROS)
        np.testing.assert_allclose(
            linalg.norm(attacked - x, p), 2 * step_size, rtol=1e-4
        )


def test_the_box_bounds_the_linf_worst_case():
    # With room r_i to the box the margin falls by sum |w_i| min(epsilon, r_i).
    w = weights()
    f = affine(w)
    x = jax.random.uniform(jax.random.key(4), (5, 20))
    x = jnp.where(x < 0.3, 0.0, jnp.where(x > 0.7, 1.0, x))
    attacked = attacks.pga(p=INF, epsilon=0.4, num_steps=30)(
        f, x, ZEROS, jax.random.key(0)
    )
    room = jnp.where(w > 0, x, 1 - x)
    expected = jnp.sum(jnp.abs(w) * jnp.minimum(0.4, room), axis=1)
    np.testing.assert_allclose(
        margins(f, x) - margins(f, attacked), expected, rtol=1e-4
    )


def rough(x):
    """A network with every trouble: kinks, NaN for some rows, saturation, dead rows."""
    flat = x.reshape(len(x), -1)
    logits = 1e3 * jnp.tanh(flat[:, :3] - 0.5) + jax.nn.relu(flat[:, 1:4] - 2)
    return jnp.where((flat[:, :1] > 0.9) & (flat[:, 1:2] > 0.5), jnp.nan, logits)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    p=st.sampled_from(EXPONENTS),
    epsilon=st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
    step_size=st.sampled_from([None, 1e-3, 10.0, INF]),
    loss=st.sampled_from(["cross_entropy", "margin", "logit_distance"]),
    network=st.sampled_from(
        [rough, lambda x: jnp.zeros((len(x), 4)), lambda x: x[:, :1]]
    ),
    batch=st.sampled_from([1, 4]),
    num_restarts=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)
def test_results_keep_budget_and_box_and_are_finite(
    p, epsilon, step_size, loss, network, batch, num_restarts, seed
):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jnp.round(jax.random.uniform(keys[0], (batch, 6)), 1)
    attack = attacks.pga(
        p=p,
        epsilon=epsilon,
        num_steps=3,
        step_size=step_size,
        loss=loss,
        num_restarts=num_restarts,
    )
    attacked = attack(network, x, jnp.zeros(batch, jnp.int32), keys[1])
    assert attacked.shape == x.shape and attacked.dtype == x.dtype
    assert np.all(np.isfinite(attacked))
    assert np.all((attacked >= 0) & (attacked <= 1))
    size = linalg.norm(attacked - x, p)
    assert np.all(size <= epsilon + 1e-5 * max(1.0, epsilon))


def test_no_motion_without_a_gradient():
    x = inputs()
    for p in EXPONENTS:
        for options in ({}, {"step_size": INF}):
            attack = attacks.pga(p=p, epsilon=0.1, random_start=False, **options)
            same = attack(lambda z: jnp.zeros((len(z), 3)), x, ZEROS)
            np.testing.assert_array_equal(same, x)


def test_a_saturated_softmax_still_has_a_gradient():
    x = inputs()
    # exp(-margin) underflows at margins of 87, and no form of the loss can help then.
    small = affine(weights(), bias=60.0)
    attacked = attacks.fgm(p=2.0, epsilon=EPSILON)(small, x, ZEROS)
    np.testing.assert_allclose(linalg.norm(attacked - x, 2.0), EPSILON, rtol=1e-5)


def test_restarts_keep_the_worst():
    def f(x):
        # A narrow hole that few starts fall into.
        bump = jnp.exp(-50 * jnp.sum((x - 0.7) ** 2, axis=1))
        return jnp.stack([jnp.ones(len(x)), 3 * bump], axis=1)

    x, labels = jnp.full((16, 3), 0.5), jnp.zeros(16, jnp.int32)
    losses = []
    for count in (1, 20):
        attack = attacks.pga(p=2.0, epsilon=0.4, num_steps=3, num_restarts=count)
        attacked = attack(f, x, labels, jax.random.key(0))
        losses.append(attacks.cross_entropy(f(attacked), labels))
    assert np.all(losses[1] >= losses[0] - 1e-6)
    assert losses[1].mean() > losses[0].mean() + 0.01


def test_results_are_repeatable_and_independent_of_jit():
    f, x = affine(weights()), inputs()
    attack = attacks.pga(p=2.0, epsilon=EPSILON, num_steps=5)
    first = attack(f, x, ZEROS, jax.random.key(0))
    again = attack(f, x, ZEROS, jax.random.key(0))
    np.testing.assert_array_equal(first, again)
    compiled = jax.jit(lambda x, key: attack(f, x, ZEROS, key))(x, jax.random.key(0))
    np.testing.assert_allclose(compiled, first, atol=1e-6)
    other = attack(f, x, ZEROS, jax.random.key(1))
    assert not np.allclose(first, other, atol=1e-6)


def test_a_list_of_budgets_is_traced_once():
    f, x = affine(weights()), inputs()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(epsilon):
        return attacks.pga(p=2.0, epsilon=epsilon)(f, x, ZEROS, jax.random.key(0))

    for epsilon in (0.01, 0.1, 0.2):
        size = linalg.norm(run(jnp.float32(epsilon)) - x, 2.0)
        np.testing.assert_allclose(size, epsilon, rtol=1e-4)
    each = attacks.fgm(p=2.0, epsilon=jnp.array([0.0, 0.05, 0.1, 0.15, 0.2]))
    size = linalg.norm(each(f, x, ZEROS) - x, 2.0)
    np.testing.assert_allclose(size, [0.0, 0.05, 0.1, 0.15, 0.2], rtol=1e-4)


def test_no_gradient_flows_through_an_attack():
    x = inputs()

    def loss(w):
        attacked = attacks.fgm(p=2.0, epsilon=EPSILON)(affine(w), x, ZEROS)
        return jnp.sum(attacked)

    np.testing.assert_array_equal(jax.grad(loss)(weights()), 0)


def test_uniform_noise_stays_in_the_ball_and_ignores_the_network():
    x = inputs()
    noise = attacks.uniform_noise(p=2.0, epsilon=EPSILON)
    drawn = noise(affine(weights()), x, ZEROS, jax.random.key(0))
    other = noise(affine(-weights()), x, ZEROS, jax.random.key(0))
    np.testing.assert_array_equal(drawn, other)
    size = linalg.norm(drawn - x, 2.0)
    assert np.all((size > 0) & (size <= EPSILON * (1 + 1e-5)))


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_fgm(self):
        f, x = affine(weights()), inputs()

        def drop(x):
            attacked = attacks.fgm(p=2.0, epsilon=EPSILON)(f, x, ZEROS)
            return margins(f, x) - margins(f, attacked)

        found = self.variant(drop)(x)
        expected = EPSILON * linalg.norm(weights()[None], 2.0)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5}, "p is 0.5"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": INF}, "epsilon is inf"),
        ({"num_steps": -1}, "num_steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"num_restarts": 2, "random_start": False}, "num_restarts"),
        ({"loss": "accuracy"}, "loss is 'accuracy'.*margin"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.pga(**{"p": 2.0, "epsilon": 0.1, **options})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones((2, 3), jnp.int32), jnp.zeros(2, int)), "x has"),
        ((jnp.ones((0, 3)), jnp.zeros(0, int)), "x has"),
        ((jnp.ones((2, 3)), jnp.zeros(3, int)), "labels has"),
        ((jnp.ones((2, 3)), jnp.zeros(2)), "labels has"),
        ((jnp.ones((2, 3)), jnp.zeros(2, int)), "key is None"),
    ],
)
def test_bad_data_are_refused(arguments, message):
    attack = attacks.pga(p=2.0, epsilon=0.1)
    with pytest.raises(ValueError, match=message):
        attack(lambda x: x, *arguments)


def test_logit_distance_needs_another_start():
    attack = attacks.pga(p=2.0, epsilon=0.1, loss="logit_distance", random_start=False)
    with pytest.raises(ValueError, match="logit_distance"):
        attack(lambda x: x, jnp.ones((2, 3)), jnp.zeros(2, int))
