"""tests: FAB-T and its projection, against closed forms and mathematical programs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from opnorm import attacks, linalg
from opnorm.attacks.fab import project_hyperplane

P = (1.0, 2.0, math.inf)
SHAPE = (4, 4, 3)
N = 48
W = np.random.default_rng(0).normal(size=N)
FIRST = np.random.default_rng(1).normal(size=(N, 12)) / 3
SECOND = np.random.default_rng(2).normal(size=(12, 5))


def flatten(x):
    return x.reshape(len(x), -1)


def affine(offset, x):
    """Two classes of margin <W, x> + offset."""
    margin = flatten(x) @ jnp.asarray(W, x.dtype) + offset
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def network(x):
    """Five classes, with kinks."""
    hidden = jax.nn.relu(flatten(x - 0.5) @ jnp.asarray(FIRST, x.dtype))
    return hidden @ jnp.asarray(SECOND, x.dtype)


def pictures(count, edges=0.0):
    """Pictures in [0.4, 0.6], with a part of their pixels at 0 or 1."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.4, 0.6, (count, *SHAPE))
    x = np.where(rng.uniform(size=x.shape) < edges, rng.integers(0, 2, x.shape), x)
    return x.astype(np.float32)


def lp(delta, p):
    return np.linalg.norm(flatten(np.asarray(delta, np.float64)), p, axis=1)


def largest_drop(x, p, epsilon):
    """By how much the margin of one picture can fall inside ball and box."""
    room, size = np.where(W > 0, x.ravel(), 1 - x.ravel()), np.abs(W)
    if p == math.inf:
        return size @ np.minimum(epsilon, room)
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
    return size @ np.minimum(low * size, room)


@functools.partial(jax.jit, static_argnums=(0,))
def _attack(options, x, offset, epsilon):
    attack = attacks.fab(epsilon=epsilon, **dict(options))
    return attack.run(functools.partial(affine, offset), x, jnp.zeros(len(x), int))


def run_affine(x, margin, epsilon=None, **options):
    offset = margin - flatten(x).astype(np.float64) @ W
    options = tuple(({"num_steps": 30} | options).items())
    return _attack(options, x, offset.astype(np.float32), epsilon)


@pytest.mark.parametrize("p", P)
def test_it_ends_where_its_recursion_does(p) -> None:
    x, size = pictures(6), np.linalg.norm(W, linalg.conjugate_exponent(p))
    # The least distance, at which no pixel meets the box.
    least = np.linspace(0.2, 1, 6) * {1.0: 0.35, 2.0: 0.5, math.inf: 0.1}[p]
    found = run_affine(x, least * size, p=p)
    assert found.success.all()
    # tau' = (tau + 1.05 (1 - tau)) (1 - a) + 1.05 a from tau = 0, where a = min(0.1,
    # |1 - tau| / (1 + |1 - tau|)), has its least value above 1 after two steps.
    np.testing.assert_allclose(found.distance / least, 1.005213, atol=5e-5)
    np.testing.assert_allclose(found.distance, lp(found.x_adv - x, p), rtol=1e-6)
    # With two classes there is one target; without a budget it takes all its steps.
    np.testing.assert_array_equal(found.steps, 30)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("part", [0.2, 0.6])
def test_it_comes_near_the_least_distance_inside_the_box(p, part) -> None:
    x = pictures(6, edges=0.6)
    least = part * {1.0: 8.0, 2.0: 2.0, math.inf: 0.4}[p]
    margin = np.array([largest_drop(row, p, least) for row in x])
    found = run_affine(x, margin, p=p)
    ratio = np.asarray(found.distance) / least
    assert found.success.all()
    assert np.all(ratio >= 1 - 1e-5) and np.all(ratio <= 1.01), ratio


@pytest.mark.parametrize("p", P)
def test_a_boundary_outside_the_box_is_not_reached(p) -> None:
    x = pictures(6)
    beyond = 1.01 * np.array([largest_drop(row, p, 1e3) for row in x])
    found = run_affine(x, beyond, p=p)
    assert not found.success.any()
    np.testing.assert_array_equal(found.x_adv, x)
    np.testing.assert_array_equal(found.distance, 0)


def test_a_wrong_example_stays_where_it_is() -> None:
    x = pictures(6)
    found = run_affine(x, np.array([-1.0] * 3 + [1.0] * 3), p=2.0)
    np.testing.assert_array_equal(found.x_adv[:3], x[:3])
    np.testing.assert_array_equal(found.steps, [0] * 3 + [30] * 3)
    assert found.success.all()


@pytest.mark.parametrize("p", P)
def test_with_a_budget_what_lies_beyond_is_returned_clean(p) -> None:
    x, size = pictures(6), np.linalg.norm(W, linalg.conjugate_exponent(p))
    budget = {1.0: 0.3, 2.0: 0.4, math.inf: 0.08}[p]
    # The attack comes as near as 1.005213 times the least distance.
    part = np.array([0.2, 0.9, 0.994, 0.996, 1.001, 1.5])
    found = run_affine(x, part * budget * size, jnp.full(6, budget, jnp.float32), p=p)
    np.testing.assert_array_equal(found.success, part < 0.995)
    np.testing.assert_array_equal(found.x_adv[3:], x[3:])
    assert np.all(found.distance <= np.float32(budget))
    # Within the budget it stops.
    assert np.all(found.steps[:3] <= 2) and np.all(found.steps[3:] == 30)


def stored(z, labels):
    """The nearest adversarial point on many rays to other pictures."""
    return jnp.argmax(network(z), axis=1) != labels


@pytest.mark.parametrize("p", P)
def test_points_of_a_network_with_kinks_are_adversarial(p) -> None:
    x = pictures(5, edges=0.2)
    labels = jnp.argmax(network(x), axis=1)

    @jax.jit
    def attack(x, labels, epsilon):
        options = {"num_steps": 20, "num_targets": 9}
        free = attacks.fab(p=p, **options).run(network, x, labels)
        # Half of the examples have a budget that is enough.
        bounded = attacks.fab(p=p, epsilon=epsilon * free.distance, **options)
        return free, bounded.run(network, x, labels)

    share = jnp.array([1.1, 0.9, 2.0, 0.5, 1.0])
    free, bounded = attack(x, labels, share)
    assert free.success.all()
    assert np.all(np.argmax(network(free.x_adv), axis=1) != labels)
    assert np.all(free.x_adv >= 0) and np.all(free.x_adv <= 1)
    np.testing.assert_allclose(free.distance, lp(free.x_adv - x, p), rtol=1e-6)
    # Nine targets are no more than four.
    np.testing.assert_array_equal(free.steps, 4 * 20)
    np.testing.assert_array_equal(bounded.success, share >= 1)
    wrong = np.argmax(network(bounded.x_adv), axis=1) != labels
    np.testing.assert_array_equal(wrong, share >= 1)
    within = share * free.distance
    assert np.all(lp(bounded.x_adv - x, p) <= within * (1 + 1e-6))
    np.testing.assert_array_equal(bounded.x_adv[1::2], x[1::2])
    assert np.all(bounded.steps[::2] <= free.steps[::2])
    # One step cannot go further than the linearised boundary of the nearest class.
    assert np.all(free.distance < {1.0: N, 2.0: math.sqrt(N), math.inf: 1.0}[p])


def test_an_example_does_not_depend_on_its_batch() -> None:
    x = pictures(5, edges=0.2)
    labels = jnp.argmax(network(x), axis=1)
    attack = attacks.fab(p=2.0, num_steps=8)
    run = jax.jit(lambda x, labels: attack.run(network, x, labels))
    whole = run(x, labels)
    for i in range(5):
        alone = run(x[i : i + 1], labels[i : i + 1])
        np.testing.assert_allclose(alone.x_adv[0], whole.x_adv[i], atol=1e-6)


# The projection on a hyperplane inside the box.

COUNT, SIZE = 16, 6


def hyperplanes():
    """Points, normals, and values there that the box leaves room to bring to zero."""
    rng = np.random.default_rng(5)
    x, w = rng.uniform(0, 1, (COUNT, SIZE)), rng.normal(size=(COUNT, SIZE))
    x = np.where(rng.uniform(size=x.shape) < 0.3, rng.integers(0, 2, x.shape), x)
    w[0, :4] = 0
    w[1] = [1.0, -1.0, 1.0, 0.5, -1.0, 0.5]
    sign = np.where(np.arange(COUNT) % 2 == 0, 1.0, -1.0)
    downhill = w * sign[:, None] > 0
    reach = np.sum(np.abs(w) * np.where(downhill, x, 1 - x), axis=1)
    return x, w, sign * rng.uniform(0.05, 0.95, COUNT) * reach


def shortest(x, w, offset, p, box=True):
    """The least ``||d||_p`` with <w, d> + offset = 0 and x + d in the box."""
    low, high = (-x, 1 - x) if box else (np.full(SIZE, -1e9), np.full(SIZE, 1e9))
    if p == 2:
        # d = clip(-mu w, low, high) for the mu at which <w, d> = -offset.
        least, most = -1e6, 1e6
        for _ in range(200):
            mu = (least + most) / 2
            above = w @ np.clip(-mu * w, low, high) > -offset
            least, most = (mu, most) if above else (least, mu)
        return np.linalg.norm(np.clip(-most * w, low, high))
    # Variables d, and |d| or the largest of them.
    extra = SIZE if p == 1 else 1
    spread = np.eye(SIZE) if p == 1 else np.ones((SIZE, 1))
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(SIZE), np.ones(extra)]),
        A_ub=np.block([[np.eye(SIZE), -spread], [-np.eye(SIZE), -spread]]),
        b_ub=np.zeros(2 * SIZE),
        A_eq=np.concatenate([w, np.zeros(extra)])[None],
        b_eq=[-offset],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * extra],
    )
    return found.fun


@functools.partial(jax.jit, static_argnums=(3, 4))
def _project(x, w, offset, p, bounds):
    return project_hyperplane(x, w, offset, p, bounds)


def project(x, w, offset, p, bounds=(0.0, 1.0), dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        given = [jnp.asarray(a, dtype) for a in (x, w, offset)]
        return np.asarray(_project(*given, p, bounds), np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", P)
def test_hyperplanes_are_reached_the_shortest_way(p, dtype) -> None:
    x, w, offset = hyperplanes()
    # The length of the normal plays no part, however small.
    length = np.where(np.arange(COUNT) % 3 == 0, 1e-12, 1.0)
    y = project(x, w * length[:, None], offset * length, p, dtype=dtype)
    # float64's margin: what 32 halvings of a threshold for p = 1 leave.
    slack = 2e-6 if dtype == np.float32 else 2e-9
    np.testing.assert_allclose(np.sum(w * (y - x), axis=1), -offset, atol=slack)
    assert y.min() >= 0 and y.max() <= 1
    for i in range(COUNT):
        reached = np.linalg.norm(y[i] - x[i], p)
        best = shortest(x[i], w[i], offset[i], p)
        np.testing.assert_allclose(reached, best, atol=10 * slack)


@pytest.mark.parametrize("p", P)
def test_without_a_box_the_way_is_along_the_dual_map(p) -> None:
    x, w, offset = hyperplanes()
    y = project(x, w, offset, p, None)
    np.testing.assert_allclose(np.sum(w * (y - x), axis=1), -offset, atol=1e-9)
    conjugate = linalg.conjugate_exponent(p)
    least = np.abs(offset) / np.linalg.norm(w, conjugate, axis=1)
    np.testing.assert_allclose(np.linalg.norm(y - x, p, axis=1), least, rtol=1e-8)


@pytest.mark.parametrize("p", P)
def test_hyperplanes_outside_the_box_draw_to_the_nearest_corner(p) -> None:
    x, w, offset = hyperplanes()
    y = project(x, w, 1e3 * offset, p)
    ends = np.where(w * np.sign(offset)[:, None] > 0, 0.0, 1.0)
    np.testing.assert_allclose(y, np.where(w == 0, x, ends), atol=1e-12)


@pytest.mark.parametrize("p", P)
def test_where_nothing_is_to_do_nothing_moves(p) -> None:
    x, w, offset = hyperplanes()
    for bounds in ((0.0, 1.0), None):
        np.testing.assert_array_equal(project(x, 0 * w, offset, p, bounds), x)
        np.testing.assert_array_equal(project(x, w, 0 * offset, p, bounds), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_targets": 0}, "num_targets is 0"),
        ({"num_targets": True}, "num_targets is True"),
        ({"bounds": None}, "bounds is None; this attack needs a finite"),
        ({"bounds": (0.0, math.inf)}, "bounds is"),
    ],
)
def test_bad_options_are_refused_by_name(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacks.fab(**({"p": 2.0} | options))
