"""Every attack keeps budget, box, finiteness, cost, keys and dtypes."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opnorm import attacks, linalg
from opnorm.attacks.parts import decided, within_budget

P = [1.0, 1.5, 2.0, 3.0, math.inf]
FIRST = np.random.default_rng(1).normal(size=(6, 7))
SECOND = np.random.default_rng(2).normal(size=(7, 4))


def network(x):
    """A fixed smooth network with four classes."""
    flat = x.reshape(len(x), -1)
    first = jnp.asarray(FIRST[: flat.shape[1]], x.dtype)
    return jnp.tanh(flat @ first) @ jnp.asarray(SECOND, x.dtype)


def rough(x):
    """Four classes with kinks, saturation, dead inputs, and NaN for some rows."""
    flat = x.reshape(len(x), -1)
    logits = 1e3 * jnp.tanh(flat[:, :4] - 0.5) + jax.nn.relu(flat[:, 1:5] - 2)
    return jnp.where(flat[:, :1] > 0.8, jnp.nan, logits)


def points(batch=3, low=0.3, high=0.7, seed=0):
    drawn = np.random.default_rng(seed).uniform(low, high, (batch, 6))
    return jnp.asarray(drawn, jnp.float32)


def classes(x):
    return np.arange(len(x)) % 4


def plain(x):
    """The smooth network in numpy."""
    return np.tanh(np.asarray(x, np.float64) @ FIRST) @ SECOND


def lp(delta, p):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, p, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attack(f, options, x, epsilon, key):
    attack = attacks.pga(epsilon=epsilon, **dict(options))
    return attack(f, x, classes(x), key)


@functools.partial(jax.jit, static_argnums=0)
def stepped(p, x, epsilon, step_size, key):
    attack = attacks.pga(p=p, epsilon=epsilon, num_steps=3, step_size=step_size)
    return attack(rough, x, classes(x), key)


def attacked(f, x, epsilon, seed=0, **options):
    key = None if seed is None else jax.random.key(seed)
    return _attack(f, tuple(options.items()), x, jnp.float32(epsilon), key)


@settings(max_examples=25, deadline=None)
@given(
    p=st.sampled_from(P),
    epsilon=st.floats(0.0, 3.0),
    step_size=st.sampled_from([1e-3, 0.1, 10.0, math.inf]),
    seed=st.integers(0, 1000),
)
def test_the_result_keeps_budget_and_box(p, epsilon, step_size, seed) -> None:
    x = jnp.clip(points(4, -0.2, 1.2, seed), 0, 1)
    found = stepped(p, x, np.float32(epsilon), step_size, jax.random.key(seed))
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    chex.assert_tree_all_finite(found)
    assert np.min(found) >= 0
    assert np.max(found) <= 1
    assert np.all(lp(found - x, p) <= epsilon + 1e-5 * max(1, epsilon))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.1, 0.9)])
def test_the_box_holds_to_the_last_bit(bounds) -> None:
    x = points(64, *bounds)
    found = attacked(network, x, 0.7, p=math.inf, num_steps=3, bounds=bounds)
    low, high = np.float32(bounds)
    assert np.min(found) >= low
    assert np.max(found) <= high
    assert np.any(found == low)
    assert np.any(found == high)


def constant(value, z):
    return jnp.sum(z) * 0 + jnp.full((len(z), 4), value)


CONSTANTS = np.float32([math.nan, math.inf, 1.0])


@pytest.mark.parametrize("p", [1.0, 3.0, math.inf])
def test_constant_and_broken_networks_move_nothing(p) -> None:
    x = points()
    options = {"p": p, "num_steps": 2, "random_start": False}
    # One example walks, one jumps, one has no budget.
    step_size, epsilon = np.float32([0.1, np.inf, 0.1]), np.float32([0.1, 0.1, 0.0])

    @jax.jit
    def run(value, epsilon, step_size):
        attack = attacks.pga(epsilon=epsilon, step_size=step_size, **options)
        return attack(functools.partial(constant, value), x, classes(x))

    for value in CONSTANTS:
        np.testing.assert_array_equal(run(value, epsilon, step_size), x, str(value))


@pytest.mark.parametrize("loss", ["cross_entropy", "logit_distance"])
def test_restarts_on_broken_networks_stay_in_the_ball(loss) -> None:
    x = points()
    attack = attacks.pga(p=2.0, epsilon=0.1, loss=loss, num_restarts=2, num_steps=2)

    @jax.jit
    def run(value, key):
        return attack(functools.partial(constant, value), x, classes(x), key)

    for value in CONSTANTS:
        found = np.asarray(run(value, jax.random.key(0)))
        assert np.all(np.isfinite(found)), value
        assert np.all(lp(found - x, 2) <= 0.1 + 1e-6), value


def test_a_broken_row_leaves_the_others_alone() -> None:
    x = points()
    attack = attacks.pga(p=2.0, epsilon=0.1, random_start=False)
    run = jax.jit(lambda broken: attack(lambda z: network(z) + broken, x, classes(x)))
    found = np.asarray(run(np.float32([[0.0], [np.nan], [0.0]])))
    whole = np.asarray(run(np.zeros((3, 1), np.float32)))
    np.testing.assert_allclose(found[::2], whole[::2], atol=1e-6)
    np.testing.assert_array_equal(found[1], np.asarray(x)[1])


@pytest.mark.parametrize("p", P)
def test_a_budget_of_zero_returns_the_input(p) -> None:
    x = points(4)
    found = stepped(p, x, np.float32(0.0), 0.1, jax.random.key(0))
    np.testing.assert_array_equal(found, x)


def test_examples_do_not_depend_on_each_other() -> None:
    x, labels = np.asarray(points(5)), np.arange(5) % 4
    attack = attacks.pga(p=2.0, epsilon=0.2, num_steps=3, random_start=False)
    run = jax.jit(functools.partial(attack, network))
    whole = np.asarray(run(x, labels))
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_allclose(run(x[order], labels[order]), whole[order], atol=1e-6)
    alone = run(x[2:3], labels[2:3])
    np.testing.assert_allclose(alone, whole[2:3], atol=1e-6)


def test_a_key_decides_the_result_under_jit_and_without() -> None:
    x, options = points(), {"p": 2.0, "num_steps": 3}
    first, again, other = (attacked(network, x, 0.2, i, **options) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.any(np.asarray(first) != np.asarray(other), axis=1))
    attack = attacks.pga(epsilon=0.2, **options)
    eager = attack(network, x, classes(x), jax.random.key(0))
    np.testing.assert_allclose(eager, first, atol=1e-6)


def test_restarts_keep_the_worst_start_of_each_example() -> None:
    x, own = points(6), np.eye(4, dtype=bool)[np.arange(6) % 4]

    def reached(num_restarts):
        options = {"num_restarts": num_restarts, "num_steps": 1, "loss": "margin"}
        logits = plain(attacked(network, x, 0.3, p=2.0, **options))
        return np.max(np.where(own, -np.inf, logits), axis=1) - logits[own]

    one, eight = reached(1), reached(8)
    assert np.all(eight >= one - 1e-6)
    assert np.any(eight > one + 1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_prefer_the_goal_to_a_higher_loss(targeted) -> None:
    x, labels = np.full((8, 1), 0.5, np.float32), np.full(8, int(targeted))

    def f(z):
        return jnp.concatenate([jnp.zeros_like(z), z - 0.5], axis=1)

    def backwards(logits, labels):
        return logits[:, 1] if targeted else -logits[:, 1]

    options = {"p": math.inf, "epsilon": 0.4, "num_steps": 0, "loss": backwards}
    one, many = (
        np.asarray(
            jax.jit(functools.partial(attack, f))(x, labels, jax.random.key(0))
        ).ravel()
        for attack in (
            attacks.pga(num_restarts=count, targeted=targeted, **options)
            for count in (1, 16)
        )
    )
    # Above 0.5 class 1 wins; of the points there, the loss prefers the lowest.
    winners = one > 0.5
    assert np.any(winners)
    assert not np.all(winners)
    assert np.all(many > 0.5)
    assert np.all(many[winners] <= one[winners])
    assert np.any(many[winners] < one[winners])


def test_logit_distance_is_label_free() -> None:
    x, key = points(), jax.random.key(0)
    attack = attacks.pga(p=2.0, epsilon=0.2, loss="logit_distance", num_restarts=3)
    run = jax.jit(functools.partial(attack, network))
    found = run(x, np.zeros(3, int), key)
    np.testing.assert_array_equal(found, run(x, np.ones(3, int), key))
    noise = attacks.uniform_noise(p=2.0, epsilon=0.2)(network, x, classes(x), key)
    moved, drawn = (
        np.linalg.norm(plain(point) - plain(x), axis=1) for point in (found, noise)
    )
    assert np.all(moved > drawn)


def test_a_start_is_where_the_attack_begins() -> None:
    x = points()
    attack = attacks.pga(p=2.0, epsilon=0.2, num_steps=0)
    inside = x + 0.01
    np.testing.assert_array_equal(attack(network, x, classes(x), start=inside), inside)
    outside = attack(network, x, classes(x), start=x + 0.3)
    np.testing.assert_allclose(lp(outside - x, 2), 0.2, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 10, 100])
def test_a_step_costs_one_forward_pass_and_one_input_gradient(num_steps) -> None:
    x, weights = points(), (jnp.ones((6, 7)), jnp.ones((7, 4)))

    def total(weights):
        def f(z):
            return jnp.tanh(z @ weights[0]) @ weights[1]

        attack = attacks.pga(p=2.0, epsilon=0.1, num_steps=num_steps)
        return attack(f, x, classes(x), jax.random.key(0)).sum()

    # Two layers forward and two backward, once: in the body of the loop.
    assert str(jax.make_jaxpr(total)(weights)).count("dot_general[") == 4
    differentiated = jax.make_jaxpr(jax.grad(total))(weights)
    assert str(differentiated).count("dot_general[") <= 4


def test_no_gradient_flows_through_an_attack() -> None:
    x = points()

    def total(z, weight):
        attack = attacks.pga(p=2.0, epsilon=0.1, num_steps=2, num_restarts=2)
        found = attack(
            lambda a: weight * network(a), z, classes(z), jax.random.key(0), start=z
        )
        return found.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(x, 2.0)
    chex.assert_trees_all_equal(gradients, (jnp.zeros_like(x), jnp.float32(0)))


def test_noise_fills_the_ball_and_ignores_the_network() -> None:
    x, labels = np.full((2000, 3), 0.5, np.float32), np.zeros(2000, int)
    attack = attacks.uniform_noise(p=2.0, epsilon=0.2)
    run = jax.jit(lambda sign, key: attack(lambda z: sign * z, x, labels, key))
    drawn = np.asarray(run(1.0, jax.random.key(0)))
    np.testing.assert_array_equal(drawn, run(-1.0, jax.random.key(0)))
    radius = lp(drawn - x, 2) / 0.2
    # P(radius <= r) = r^n with n = 3.
    for r in (0.5, 0.8, 1.0):
        assert abs(np.mean(radius <= r + 1e-6) - r**3) < 0.04


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_shape_and_dtype_are_those_of_the_input(dtype) -> None:
    x = jnp.full((2, 3, 2, 1), 0.5, dtype)
    found = attacked(network, x, 0.25, p=2.0, num_restarts=2, num_steps=3)
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert np.all(lp(np.asarray(found, np.float32) - 0.5, 2) <= 0.25 * 1.02)


def over_devices(f):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(spec, spec), out_specs=spec))


def test_attacks_run_under_vmap_and_shard_map() -> None:
    x, labels = np.asarray(points(8)), np.arange(8) % 4
    attack = attacks.pga(p=2.0, epsilon=0.2, num_steps=3, random_start=False)
    run = functools.partial(attack, network)
    expected = jax.jit(run)(x, labels)
    mapped = jax.jit(jax.vmap(run))(x[:, None], labels[:, None])
    np.testing.assert_allclose(mapped[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(over_devices(run)(x, labels), expected, atol=1e-6)


def test_meshes_change_no_point() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    keys = jax.random.split(jax.random.key(0), 8)
    epsilon = np.linspace(0.1, 0.3, 8, dtype=np.float32)
    given = (np.asarray(points(8)), np.arange(8) % 4, keys, epsilon)
    placed = jax.device_put(given, jax.NamedSharding(mesh, jax.P("data")))

    def run(x, labels, keys, epsilon):
        options = {"p": 2.0, "num_steps": 2, "num_restarts": 2, "momentum": 0.5}
        attack = attacks.pga(epsilon=epsilon, step_size=epsilon, **options)
        return attack.run(network, x, labels, keys)

    expected, on_mesh = jax.jit(run)(*given), run(*placed)
    spec = jax.P("data")
    mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    chex.assert_trees_all_close(on_mesh, expected, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(mapped)(*placed), expected, atol=1e-6)
    assert on_mesh.x_adv.sharding.is_equivalent_to(placed[0].sharding, 2)


def test_no_success_beyond_the_budget() -> None:
    # A search that goes three units along the first axis, past the boundary at 2.
    stage = attacks.Stage(
        name="far",
        num_steps=0,
        init=lambda f, problem: problem.x + jnp.asarray([3.0, 0.0]),
        step=lambda f, problem, state, i: state,
        finish=lambda problem, state: state,
        epsilon=np.float32([1.0, 2.9, 3.0, 3.1]),
    )

    def f(z):
        return jnp.concatenate([2 - z[:, :1], jnp.zeros_like(z[:, :1])], axis=1)

    x, labels = np.zeros((4, 2), np.float32), np.zeros(4, int)
    alone = attacks.Attack("far", 2.0, (stage,))
    found = alone.run(f, x, labels)
    np.testing.assert_array_equal(found.success, [False, False, True, True])
    np.testing.assert_array_equal(found.distance, 3)
    for joined in (attacks.first_success([alone]), attacks.best_distance([alone])):
        found = joined.run(f, x, labels)
        np.testing.assert_array_equal(found.success, [False, False, True, True])
        np.testing.assert_array_equal(found.distance, [0, 0, 3, 3])


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_budget_allows_for_rounding_and_no_more(p) -> None:
    draw = np.random.default_rng(3)
    x = draw.uniform(-1, 1, (64, 3072)).astype(np.float32)
    delta = draw.normal(size=x.shape)
    epsilon = 0.25 * np.linalg.norm(np.ones(3072), p)
    delta *= epsilon / np.linalg.norm(delta, p, axis=1, keepdims=True)
    for factor, kept in ((1.0, True), (1 + 1e-4, False)):
        distance = linalg.norm((x + factor * delta).astype(np.float32) - x, p)
        within = within_budget(distance, epsilon, x, p)
        np.testing.assert_array_equal(within, kept)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"p": 0.5}, "p is 0.5"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"step_size": 0.0}, "step_size"),
        ({"num_steps": -1}, "num_steps"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"num_restarts": 2, "random_start": False}, "num_restarts"),
        ({"loss": "accuracy"}, "loss is 'accuracy'.*margin"),
        ({"loss": "logit_distance", "targeted": True}, "targeted"),
        ({"q": 0.0}, "q is"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_bad_options_are_refused_by_name(options, name) -> None:
    with pytest.raises(ValueError, match=name):
        attacks.pga(**({"p": 2.0, "epsilon": 0.1} | options))


def test_labels_that_only_a_loss_of_the_callers_reads_may_be_any() -> None:
    x, rows = points(), np.array([7, -2, 9])
    table = {7: [1.0, 0.0, 0.0, 2.0], -2: [0.0, 3.0, 0.0, 0.0], 9: [1.0, 1.0, 1.0, 1.0]}
    wanted = np.array([table[row] for row in rows], np.float32)

    def loss(logits, labels):
        hit = labels[:, None] == jnp.asarray(list(table))
        return jnp.sum(logits * (hit @ jnp.asarray(list(table.values()))), axis=1)

    attack = attacks.fgm(p=2.0, epsilon=0.1, loss=loss, bounds=None)
    found = attack(lambda z: z[:, :4], x, rows)
    steps = 0.1 * wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose((found - x)[:, :4], steps, atol=1e-6)
    price = attacks.wrm(penalty=10.0, num_steps=0, loss=loss)
    moved = price(lambda z: z[:, :4], x, rows) - x
    np.testing.assert_allclose(moved[:, :4], 0.1 * wanted, atol=1e-6)
    options = {"p": 2.0, "epsilon": 0.1}
    for free in (
        attacks.pga(loss="logit_distance", **options),
        attacks.uniform_noise(**options),
        attacks.gaussian_noise(**options),
        attacks.apgd(loss=loss, keep="loss", **options),
    ):
        assert not free.needs_classes
    for bound in (
        attacks.pga(loss=loss, keep="success", **options),
        attacks.uniform_noise(num_draws=2, **options),
        attacks.apgd(loss=loss, **options),
        attacks.wrm(gamma=1.0),
    ):
        assert bound.needs_classes
    # A joined attack is judged by the labels.
    with pytest.raises(ValueError, match="labels has values from -2 to 9"):
        attacks.best_distance([attack])(lambda z: z[:, :4], x, rows)


def test_what_labels_are_costs_no_second_look_at_the_network() -> None:
    calls = []

    def f(z):
        calls.append(z)
        return network(z)

    x, attack = points(), attacks.fgm(p=2.0, epsilon=0.1)
    for labels in (np.arange(3), jnp.arange(3)):
        jax.make_jaxpr(lambda z, y=labels: attack(f, z, y))(x)
    jax.make_jaxpr(functools.partial(attack, f))(x, np.arange(3))
    assert len(calls) == 3


def test_bad_data_are_refused_by_name() -> None:
    x, labels, key = jnp.zeros((2, 6)), jnp.zeros(2, int), jax.random.key(0)
    attack = attacks.pga(p=2.0, epsilon=0.1)
    for arguments, name in [
        ((x, labels), "key is None"),
        ((x, labels[:1], key), "labels has"),
        ((x, labels.astype(float), key), "labels has"),
        ((x, jax.nn.one_hot(labels, 4), key), "labels has shape .2, 4. and dtype"),
        ((x, labels + jnp.arange(2) * 4, key), "from 0 to 4; the network has 4 class"),
        ((x, np.array([-1, 3]), key), "from -1 to 3.*must be from 0 to 3"),
        ((x.astype(jnp.uint8), labels, key), "x has"),
        ((x[:0], labels[:0], key), "x has"),
    ]:
        with pytest.raises(ValueError, match=name):
            attack(network, *arguments)
    with pytest.raises(ValueError, match="start has"):
        attack(network, x, labels, key, start=x[:1])
    with pytest.raises(ValueError, match="start was given, and deepfool"):
        attacks.deepfool()(network, x, labels, start=x)
    with pytest.raises(ValueError, match="logit_distance"):
        attacks.fgm(p=2.0, epsilon=0.1, loss="logit_distance")(network, x, labels)


def test_inputs_outside_the_box_are_refused_unless_there_is_none():
    def f(x):
        return jnp.stack([x.sum(1), -x.sum(1)], axis=1)

    x, labels = jnp.array([[0.5, -0.25]]), jnp.zeros(1, int)
    options = {"p": math.inf, "epsilon": 0.1, "num_steps": 2, "random_start": False}
    with pytest.raises(ValueError, match=r"x has values from -0.25 to 0.5, outside"):
        attacks.pga(**options)(f, x, labels)
    for bounds in (None, (-1.0, 1.0)):
        moved = attacks.pga(**options, bounds=bounds)(f, x, labels)
        np.testing.assert_allclose(jnp.abs(moved - x), 0.1, rtol=1e-5)


def test_a_network_of_nan_decides_for_no_class():
    logits = jnp.array([[math.nan, 0.0], [1.0, math.nan], [1.0, 0.0]])
    labels = jnp.array([0, 1, 0])
    np.testing.assert_array_equal(
        decided(logits, labels, targeted=False), [True, True, False]
    )
    np.testing.assert_array_equal(
        decided(logits, labels, targeted=True), [False, False, True]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 0}, "key is 0"),
        ({"labels": [0]}, "labels is a list"),
        ({"x": [[0.5]]}, "x is a list"),
    ],
)
def test_what_is_no_array_is_named(change, message):
    given = {"x": jnp.full((1, 1), 0.5), "labels": jnp.zeros(1, int)}
    given |= {"key": jax.random.key(0)} | change
    attack = attacks.pga(p=2, epsilon=0.1, num_steps=1)
    with pytest.raises(ValueError, match=message):
        attack(lambda x: jnp.concatenate([x, -x], axis=1), **given)


def test_an_attack_in_place_of_several_is_refused():
    with pytest.raises(ValueError, match="attacks is an attack"):
        attacks.best_distance(attacks.deepfool())
