"""FAB, Square and the ensemble on affine networks with known answers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from opnorm import attacks, linalg
from opnorm.attacks.apgd import _adapt, _Momentum, _Peak, _State
from opnorm.attacks.fab import project_hyperplane
from opnorm.attacks.square import _sizes, image_shape

P = (1.0, 2.0, math.inf)
N = 48
W = np.random.default_rng(0).normal(size=N)
EPSILON = {1.0: 0.4, 2.0: 0.3, math.inf: 0.05}


def affine(offset, x):
    """Two classes of margin <W, x> + offset."""
    margin = x.reshape(len(x), -1) @ jnp.asarray(W, x.dtype) + offset
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def images(count=4, edges=0.0):
    """Images in [0.4, 0.6], with a part of their pixels at 0 or 1."""
    rng = np.random.default_rng(1)
    x = rng.uniform(0.4, 0.6, (count, N))
    at_edge = rng.uniform(size=x.shape) < edges
    x = np.where(at_edge, rng.integers(0, 2, x.shape), x)
    return jnp.asarray(x.reshape(count, 4, 4, 3), jnp.float32)


def offsets(x, margin):
    return jnp.asarray(margin - np.asarray(x, np.float64).reshape(len(x), -1) @ W)


def largest_drop(x, p, epsilon):
    """By how much the margin can fall inside ball and box, in float64."""
    room = np.where(W > 0, x, 1 - x)
    size = np.abs(W)
    if p == math.inf:
        return np.sum(size * np.minimum(epsilon, room))
    if p == 1:
        left, total = epsilon, 0.0
        for i in np.argsort(-size):
            step = min(room[i], left)
            left, total = left - step, total + size[i] * step
        return total
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        short = np.linalg.norm(np.minimum(middle * size, room)) < epsilon
        low, high = (middle, high) if short else (low, middle)
    return np.sum(size * np.minimum(low * size, room))


@functools.cache
def _runner(make, options):
    @jax.jit
    def run(offset, x, labels, keys):
        attack = make(**dict(options))
        return attack.run(functools.partial(affine, offset), x, labels, keys)

    return run


def run(make, x, margin, **options):
    keys = jax.random.split(jax.random.key(0), len(x))
    offset = offsets(x, margin).astype(jnp.float32)
    found = _runner(make, tuple(options.items()))
    return found(offset, x, jnp.zeros(len(x), int), keys)


def achieved(x, found, p, epsilon):
    drop = -np.asarray(found.x_adv - x, np.float64).reshape(len(x), -1) @ W
    best = [largest_drop(row, p, epsilon) for row in np.asarray(x).reshape(len(x), -1)]
    return drop / np.array(best)


def test_the_step_halves_where_it_does_not_pay() -> None:
    @jax.jit
    def changed(rises, checked, halved, window):
        old, best = jnp.array([[2.0]]), jnp.array([[5.0]])
        pace = _Momentum(old, jnp.array([0.0]), rises, checked, halved)
        peak = _Peak(best, best, jnp.array([1.0]))
        state = _State(old, old, peak, jnp.array([1.0]), pace)
        loss, opens = jnp.array([-1.0]), jnp.array(False)
        new = _adapt(state, pace, old, loss, opens, window, jnp.array([1.0]))
        return new.step_size[0], new.delta[0, 0]

    def adapted(rises, checked, halved, window=16):
        given = (np.array([rises]), np.array([checked]), np.array([halved]))
        return tuple(map(float, changed(*given, np.array(window))))

    assert adapted(rises=12, checked=0.5, halved=False) == (0.5, 5.0)
    assert adapted(rises=13, checked=0.5, halved=False) == (1.0, 2.0)
    # No better point since the last checkpoint, where the step was kept.
    assert adapted(rises=16, checked=1.0, halved=False) == (0.5, 5.0)
    assert adapted(rises=16, checked=1.0, halved=True) == (1.0, 2.0)
    # Between checkpoints nothing happens.
    assert adapted(rises=0, checked=1.0, halved=False, window=0) == (1.0, 2.0)


def test_dlr_is_what_its_definition_says() -> None:
    z = np.float32([[3.0, 1.0, 0.0, -2.0]] * 4)
    dlr, targeted = jax.jit(attacks.dlr), jax.jit(attacks.dlr_targeted)
    value = np.asarray(dlr(z, np.arange(4)))
    np.testing.assert_allclose(value, [-2 / 3, 2 / 3, 1, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(dlr(7 * z + 5, np.arange(4)), value, rtol=1e-5)
    found = targeted(z[:1], np.array([0]), np.array([1]))
    np.testing.assert_allclose(found, [-0.5], rtol=1e-6)
    assert np.all(np.asarray(dlr(np.ones_like(z), np.arange(4))) == 0)


def test_the_third_of_three_classes_pulls_too() -> None:
    def loss(z):
        return attacks.dlr_targeted(z[None], jnp.array([0]), jnp.array([2]))[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(np.float32([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(value, -3 / 2.5, rtol=1e-6)
    assert slope[2] > 0


@pytest.mark.parametrize("p", P)
def test_fab_ends_where_its_recursion_does(p) -> None:
    x, size = images(), np.linalg.norm(W, linalg.conjugate_exponent(p))
    margin = 0.15 * size * (0.5 if p == 1 else EPSILON[p])
    found = run(attacks.fab, x, margin, p=p, num_steps=30)
    assert found.success.all()
    # tau' = (tau + 1.05 (1 - tau)) (1 - a) + 1.05 a from tau = 0 has its least value
    # above 1 after two steps.
    np.testing.assert_allclose(found.distance * size / margin, 1.005213, rtol=3e-4)


@pytest.mark.parametrize("p", P)
def test_fab_is_near_the_least_distance_inside_the_box(p) -> None:
    x = images(6, edges=0.6)
    flat = np.asarray(x, np.float64).reshape(6, -1)
    wanted = 2 * EPSILON[p]
    margins = np.array([largest_drop(row, p, wanted) for row in flat])
    found = run(attacks.fab, x, margins, p=p, num_steps=60)
    ratio = np.asarray(found.distance) / wanted
    assert np.all(ratio >= 1 - 1e-5), ratio
    assert np.all(ratio <= 1.01), ratio


def test_fab_with_a_budget_returns_nothing_beyond_it() -> None:
    x, size = images(), np.linalg.norm(W)
    options = {"p": 2.0, "epsilon": 0.1, "num_steps": 30}
    far = run(attacks.fab, x, 0.11 * size, **options)
    assert not far.success.any()
    np.testing.assert_array_equal(far.x_adv, x)
    near = run(attacks.fab, x, 0.09 * size, **options)
    assert near.success.all()
    assert near.steps.max() <= 3


@pytest.mark.parametrize("p", P)
def test_hyperplanes_are_reached_the_shortest_way(p) -> None:
    rng = np.random.default_rng(5)
    x, w = rng.uniform(0, 1, (20, 6)), rng.normal(size=(20, 6))
    w[0, :3] = 0
    reach = np.sum(np.abs(w) * np.where(w > 0, x, 1 - x), axis=1)
    back = np.sum(np.abs(w) * np.where(w > 0, 1 - x, x), axis=1)
    part = rng.uniform(0.05, 0.95, 20)
    offset = np.where(np.arange(20) % 2 == 0, part * reach, -part * back)
    with jax.enable_x64(True):
        project = jax.jit(lambda *given: project_hyperplane(*given, p, (0.0, 1.0)))
        y = np.asarray(project(x, w, offset))
        corner = project(x, w, offset * 1e3)
        given = (jnp.asarray(x), jnp.zeros((20, 6)), jnp.asarray(offset))
        still = jax.jit(lambda *given: project_hyperplane(*given, p, None))(*given)
    np.testing.assert_allclose(np.sum(w * (y - x), axis=1), -offset, atol=1e-7)
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_array_equal(still, x)
    ends = np.where(w * np.sign(offset)[:, None] > 0, 0.0, 1.0)
    np.testing.assert_allclose(corner, np.where(w == 0, x, ends), atol=1e-12)
    for i in range(20):
        length = np.linalg.norm(y[i] - x[i], p)
        assert length <= _shortest(x[i], w[i], offset[i], p) * (1 + 1e-6)


def _shortest(x, w, offset, p):
    """The distance of a hyperplane inside the box, by mathematical programming."""
    n = len(x)
    if p == 2:
        found = scipy.optimize.minimize(
            lambda d: d @ d,
            np.zeros(n),
            jac=lambda d: 2 * d,
            bounds=list(zip(-x, 1 - x, strict=True)),
            constraints={"type": "eq", "fun": lambda d: w @ d + offset},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return np.sqrt(found.fun)
    # Variables d, and |d| or the largest of them.
    extra = n if p == 1 else 1
    spread = np.eye(n) if p == 1 else np.ones((n, 1))
    upper = np.block([[np.eye(n), -spread], [-np.eye(n), -spread]])
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(n), np.ones(extra)]),
        A_ub=upper,
        b_ub=np.zeros(2 * n),
        A_eq=np.concatenate([w, np.zeros(extra)])[None],
        b_eq=[-offset],
        bounds=[*zip(-x, 1 - x, strict=True), *[(0, None)] * extra],
    )
    return found.fun


def test_square_reaches_the_corner_of_the_cube() -> None:
    def f(x):
        # The same sign all over a channel, so that squares can be right everywhere.
        signs = jnp.array([1.0, -1.0, 1.0])
        margin = jnp.sum(
            x * signs * jnp.linspace(1, 2, 8)[None, :, None, None], (1, 2, 3)
        )
        return jnp.stack([margin + 1e3, 0 * margin], axis=1)

    x = jnp.full((3, 8, 8, 3), 0.5)
    attack = attacks.square(p=math.inf, epsilon=0.1, num_queries=600)
    found = jax.jit(lambda x, k: attack(f, x, jnp.zeros(3, int), k))(
        x, jax.random.key(0)
    )
    # Every pixel, those of the last row and column as well.
    worst = jnp.broadcast_to(0.1 * jnp.array([-1.0, 1.0, -1.0]), x.shape)
    np.testing.assert_allclose(found - x, worst, atol=1e-6)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_square_only_gains_and_keeps_its_budget(p) -> None:
    x, epsilon = images(), EPSILON[p]
    drops = []
    for queries in (5, 240):
        options = {"p": p, "epsilon": epsilon, "num_queries": queries}
        found = run(attacks.square, x, 50.0, **options)
        assert np.all(found.distance <= epsilon * (1 + 1e-5))
        drops.append(-np.asarray(found.x_adv - x).reshape(4, -1) @ W)
        np.testing.assert_array_equal(found.steps, queries + 1)
    assert np.all(np.diff(drops, axis=0) >= -1e-5)
    assert np.all(drops[-1] > drops[0])


def test_squares_shrink_as_published() -> None:
    sizes = _sizes(math.inf, 5000, 0.8, False, (32, 32, 3))
    changes = [0, *np.flatnonzero(np.diff(sizes)) + 1]
    assert list(sizes[changes]) == [29, 20, 14, 10, 7, 5, 4, 3]
    assert changes == [0, 11, 51, 201, 501, 1001, 2001, 4001]
    rescaled = _sizes(math.inf, 1000, 0.8, True, (32, 32, 3))
    assert rescaled[-1] == _sizes(math.inf, 9999, 0.8, False, (32, 32, 3))[-1]
    assert set(_sizes(2.0, 5000, 0.8, False, (32, 32, 3)) % 2) == {1}


@pytest.mark.parametrize("fraction", [0.8, 0.1])
@pytest.mark.parametrize(
    ("shape", "channels", "size"),
    [
        ((2, 32, 32, 3), "last", (32, 32, 3)),
        ((2, 3, 20, 30), "first", (20, 30, 3)),
        ((2, 28, 28), "last", (28, 28, 1)),
        ((2, 4, 100, 1), "last", (4, 100, 1)),
        ((2, 784), "last", (1, 784, 1)),
        ((2, 5, 6, 7), "none", (30, 7, 1)),
    ],
)
def test_first_squares_cover_the_fraction(shape, channels, size, fraction) -> None:
    assert image_shape(shape, channels) == size
    height, width, _ = size
    for p in (2.0, math.inf):
        side = _sizes(p, 1, fraction, False, size)[0]
        covered = min(side, height) * min(side, width) / (height * width)
        # Sides are whole numbers, and odd for p = 2.
        slack = (0.5 if p == math.inf else 1.5) * (1 / height + 1 / width)
        assert abs(covered - fraction) <= slack or side == (3 if p == 2 else 1)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_where_channels_are_makes_no_difference(p) -> None:
    weight = np.random.default_rng(2).normal(size=(6, 5, 3)).astype(np.float32)
    x = np.random.default_rng(3).uniform(size=(2, 6, 5, 3)).astype(np.float32)
    labels, keys = np.zeros(2, np.int32), jax.random.split(jax.random.key(0), 2)

    def last(z):
        margin = jnp.sum(jnp.tanh(z) * weight, axis=(1, 2, 3)) + 9
        return jnp.stack([margin, 0 * margin], axis=1)

    def found(f, x, channels):
        attack = attacks.square(p=p, epsilon=0.3, num_queries=30, channels=channels)
        return jax.jit(lambda x, keys: attack(f, x, labels, keys))(x, keys)

    expected = found(last, x, "last")
    moved = found(lambda z: last(jnp.moveaxis(z, 1, 3)), np.moveaxis(x, 3, 1), "first")
    np.testing.assert_allclose(np.moveaxis(moved, 1, 3), expected, atol=1e-5)
    assert np.all(np.linalg.norm((expected - x).reshape(2, -1), axis=1) > 0)


@pytest.mark.parametrize("make", [attacks.square, attacks.auto_attack])
def test_channels_that_are_plainly_elsewhere_are_refused(make) -> None:
    def never(_):
        raise AssertionError("the network was evaluated")

    labels, key = jnp.zeros(2, int), jax.random.key(0)
    for shape, channels, message in (
        ((2, 3, 8, 8), "last", "channels is 'last': axis 1 with 3.*channels='first'"),
        ((2, 8, 8, 1), "first", "channels is 'first': axis 3 with 1.*channels='last'"),
    ):
        attack = make(p=2.0, epsilon=0.1, channels=channels)
        with pytest.raises(ValueError, match=message):
            attack.run(never, jnp.zeros(shape), labels, key)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_square_takes_pictures_of_any_shape(p) -> None:
    def f(x):
        return jnp.stack([jnp.sum(x.reshape(len(x), -1), 1) + 9, jnp.zeros(len(x))], 1)

    attack = attacks.square(p=p, epsilon=0.3, num_queries=3)
    for shape in [(5, 7, 2), (17,)]:
        x = jnp.full((2, *shape), 0.5)
        found = attack.run(f, x, jnp.zeros(2, int), jax.random.key(0))
        assert np.all(found.distance > 0)
        assert np.all(found.distance <= 0.3 + 1e-5)


@pytest.mark.parametrize("p", [2.0])
def test_the_ensemble_breaks_what_can_be_broken_and_nothing_else(p) -> None:
    x, epsilon = images(), EPSILON[p] / 2
    size = np.linalg.norm(W, linalg.conjugate_exponent(p))
    # Wrong already; easily broken; barely broken; out of reach.
    margins = np.array([-0.1, 0.5, 0.99, 1.02]) * size * epsilon
    options = {"p": p, "epsilon": epsilon, "num_steps": 30, "num_queries": 20}
    found = run(attacks.auto_attack, x, margins, **options)
    np.testing.assert_array_equal(found.success, [True, True, True, False])
    np.testing.assert_array_equal(found.x_adv[::3], x[::3])
    np.testing.assert_array_equal(found.distance[::3], 0)
    assert np.all(found.distance <= epsilon * (1 + 1e-5))
    # Whoever has fallen takes part in no later attack.
    assert found.steps[0] == 0
    assert found.steps[1] <= found.steps[2] < found.steps[3]


def test_the_nearest_of_several_points_is_kept() -> None:
    x, size = images(), np.linalg.norm(W)
    members = [attacks.deepfool(overshoot=0.3), attacks.fab(p=2.0, num_steps=20)]

    def joined(**_):
        return attacks.best_distance(members)

    found = run(joined, x, 0.1 * size)
    np.testing.assert_allclose(found.distance, 0.1 * 1.005213, rtol=1e-3)
    assert not attacks.best_distance(members).budget
    alone = run(lambda **_: members[0], x, 0.1 * size)
    assert np.all(found.distance < alone.distance)


def test_attacks_that_do_not_fit_together_are_refused() -> None:
    pga = functools.partial(attacks.pga, epsilon=0.1)
    with pytest.raises(ValueError, match="attacks is empty"):
        attacks.best_distance([])
    with pytest.raises(ValueError, match=r"different norms .*p = 2.*p = inf"):
        attacks.first_success([pga(p=2.0), pga(p=math.inf)])
    with pytest.raises(ValueError, match="deepfool have no budget; best_distance"):
        attacks.first_success([pga(p=2.0), attacks.deepfool()])
    sure = attacks.carlini_wagner(confidence=0.5)
    with pytest.raises(ValueError, match=r"confidences \[0.0, 0.5\]"):
        attacks.best_distance([sure, attacks.deepfool()])
    with pytest.raises(ValueError, match="targeted and untargeted"):
        attacks.first_success([pga(p=2.0), pga(p=2.0, targeted=True)])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (attacks.apgd, {"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
        (attacks.apgd, {"num_steps": 0}, "num_steps is 0"),
        (attacks.apgd, {"loss": "dlr_target"}, "loss is 'dlr_target'; it may be"),
        (attacks.apgd, {"keep": "last"}, "keep is 'last'"),
        (attacks.apgd, {"loss": "dlr_targeted", "targeted": True}, "targeted is True"),
        (attacks.fab, {"bounds": (0.5, 0.5)}, "bounds is .0.5, 0.5.; it must be"),
        (attacks.fab, {"num_targets": 0}, "num_targets is 0"),
        (attacks.square, {"fraction": 0.0}, "fraction is 0"),
        (attacks.square, {"channels": "middle"}, "channels is 'middle'; it may be"),
        (attacks.square, {"num_queries": True}, "num_queries is True"),
        (attacks.auto_attack, {"epsilon": -1.0}, "epsilon is -1"),
    ],
)
def test_bad_options_are_refused_by_name(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**({"p": 2.0, "epsilon": 0.1} | options))
