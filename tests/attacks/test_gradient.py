"""FGM and PGA on affine networks, whose worst cases are known exactly."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks

P = [1.0, 1.5, 2.0, 3.0, math.inf]
W = np.array([1.5, -0.7, 0.4, -2.0, 0.9, 0.3])
EPSILON = 0.05
ZEROS = np.zeros(3, np.int32)


def affine(x):
    """Two classes with margin <W, x> + 0.3."""
    margin = x.reshape(len(x), -1) @ jnp.asarray(W, x.dtype) + 0.3
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def steepest(p):
    """argmax <v, W> over ||v||_p <= 1, and ||W||_{p*}, in numpy."""
    if p == math.inf:
        return np.sign(W), np.abs(W).sum()
    if p == 1:
        v = np.where(np.abs(W) == np.abs(W).max(), np.sign(W), 0)
        return v, np.abs(W).max()
    conjugate = p / (p - 1)
    size = (np.abs(W) ** conjugate).sum() ** (1 / conjugate)
    return np.sign(W) * (np.abs(W) / size) ** (conjugate - 1), size


def largest_drop(x, p, epsilon):
    """The largest decrease of <W, x> in the ball and the box [0, 1], in numpy."""
    room, size = np.where(W > 0, x, 1 - x), np.abs(W)
    if p == 1:
        order = np.argsort(-size)
        before = np.cumsum(room[order]) - room[order]
        return size[order] @ np.clip(epsilon - before, 0, room[order])
    if p == math.inf:
        return (size * np.minimum(epsilon, room)).sum()
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        short = (np.minimum(middle * size, room) ** 2).sum() < epsilon**2
        low, high = (middle, high) if short else (low, middle)
    return (size * np.minimum(low * size, room)).sum()


def points(batch=3, low=0.3, high=0.7, dtype=np.float64):
    return np.random.default_rng(0).uniform(low, high, (batch, 6)).astype(dtype)


def drop(x, attacked):
    """By how much the margin falls."""
    return (np.asarray(x) - np.asarray(attacked)) @ W


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attack(make, options, x, labels, key):
    return make(**dict(options))(affine, x, labels, key)


def attacked(make, x, labels, key=None, **options):
    return _attack(make, tuple(options.items()), jnp.asarray(x), labels, key)


@pytest.mark.parametrize(
    ("p", "loss"), [*((p, "cross_entropy") for p in P), (2.0, "margin")]
)
def test_one_step_reaches_the_worst_case(p, loss) -> None:
    with jax.enable_x64(True):
        x = points()
        found = attacked(attacks.fgm, x, ZEROS, p=p, epsilon=EPSILON, loss=loss)
        direction, size = steepest(p)
        np.testing.assert_allclose(found - x, [-EPSILON * direction] * 3, atol=1e-14)
        np.testing.assert_allclose(drop(x, found), EPSILON * size, rtol=1e-12)


@pytest.mark.parametrize("p", P)
def test_unlimited_steps_forget_a_random_start(p) -> None:
    options = {"p": p, "epsilon": EPSILON, "num_steps": 2, "step_size": math.inf}
    x = points(dtype=np.float32)
    found = attacked(attacks.pga, x, ZEROS, jax.random.key(0), **options)
    np.testing.assert_allclose(found - x, [-EPSILON * steepest(p)[0]] * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "targeted"), [(1.0, False), (2.0, False), (math.inf, False), (2.0, True)]
)
def test_default_steps_reach_the_worst_case(p, targeted) -> None:
    options = {"p": p, "epsilon": EPSILON, "random_start": False, "targeted": targeted}
    with jax.enable_x64(True):
        x = points()
        found = attacked(attacks.pga, x, ZEROS + int(targeted), **options)
        worst = -EPSILON * steepest(p)[0]
        np.testing.assert_allclose(found - x, [worst] * 3, atol=1e-14)


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_small_steps_stop_a_little_short_for_general_exponents(p) -> None:
    options = {"p": p, "epsilon": EPSILON, "random_start": False}
    with jax.enable_x64(True):
        x = points()
        found = attacked(attacks.pga, x, ZEROS, **options)
        ratio = drop(x, found) / (EPSILON * steepest(p)[1])
        assert np.all((ratio > 0.97) & (ratio <= 1 + 1e-12)), ratio


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_random_start_is_forgotten(p) -> None:
    options = {"p": p, "epsilon": EPSILON, "num_steps": 40, "step_size": EPSILON}
    with jax.enable_x64(True):
        x = points()
        found = attacked(attacks.pga, x, ZEROS, jax.random.key(3), **options)
        np.testing.assert_allclose(drop(x, found), EPSILON * steepest(p)[1], rtol=1e-9)


@pytest.mark.parametrize("p", P)
def test_a_step_has_the_step_size(p) -> None:
    options = {"epsilon": 1.0, "step_size": 0.01, "num_steps": 1, "random_start": False}
    with jax.enable_x64(True):
        x = points()
        moved = attacked(attacks.pga, x, ZEROS, p=p, **options) - x
        np.testing.assert_allclose(moved, [-0.01 * steepest(p)[0]] * 3, atol=1e-14)


def test_the_default_step_is_twice_the_budget_over_the_steps() -> None:
    options = {"p": 2.0, "epsilon": 0.3, "num_steps": 4, "random_start": False}
    x = points(dtype=np.float32)
    default = attacked(attacks.pga, x, ZEROS, **options)
    explicit = attacked(attacks.pga, x, ZEROS, step_size=0.15, **options)
    np.testing.assert_allclose(default, explicit, atol=1e-7)


def test_targeted_attacks_descend_to_their_labels() -> None:
    x, options = points(dtype=np.float32), {"p": 2.0, "epsilon": EPSILON}
    away = attacked(attacks.fgm, x, ZEROS, **options)
    towards = attacked(attacks.fgm, x, ZEROS + 1, targeted=True, **options)
    np.testing.assert_allclose(away, towards, atol=1e-6)
    back = attacked(attacks.fgm, x, ZEROS, targeted=True, **options)
    np.testing.assert_allclose(back - x, x - away, atol=1e-6)


@pytest.mark.parametrize(("p", "ratio"), [(1, 0.98), (2.0, 0.99), (math.inf, 1 - 1e-9)])
def test_pga_reaches_the_worst_case_inside_the_box(p, ratio) -> None:
    # In L1 as much as three pixels have room for.
    epsilon = 1.5 if p == 1 else 0.4
    options = {"p": p, "epsilon": epsilon, "num_steps": 200, "random_start": False}
    with jax.enable_x64(True):
        x = points(5, 0.0, 1.0)
        x[0, :3] = [0.0, 1.0, 1.0]
        found = attacked(attacks.pga, x, np.zeros(5, int), **options)
        best = np.array([largest_drop(row, p, epsilon) for row in x])
        part = drop(x, found) / best
        assert np.all((part >= ratio) & (part <= 1 + 1e-9)), part


def test_the_published_l1_attack_stops_at_the_edge_of_the_steepest_pixel() -> None:
    options = {"p": 1.0, "epsilon": 0.9, "random_start": False}
    with jax.enable_x64(True):
        x = points()
        found = attacked(attacks.pga, x, ZEROS, skip_blocked=False, **options)
        x[:, 3] = 1.0
        np.testing.assert_allclose(found, x, atol=1e-14)


@pytest.mark.parametrize(("p", "momentum"), [(1.0, 0.0), (2.0, 0.9)])
def test_a_step_takes_its_length_from_entries_that_the_box_leaves_free(
    p, momentum
) -> None:
    # The two steepest entries are at the faces that they point to.
    options = {"p": p, "epsilon": 1.0, "num_steps": 2, "step_size": 0.05}
    with jax.enable_x64(True):
        x = points()
        x[:, 3], x[:, 0] = 1.0, 0.0
        found = attacked(
            attacks.pga, x, ZEROS, random_start=False, momentum=momentum, **options
        )
        free = np.where(np.isin(np.arange(6), [0, 3]), 0, W)
        if p == 1:
            free = np.where(np.arange(6) == 4, free, 0)
        np.testing.assert_allclose(
            found - x, [-0.1 * free / np.linalg.norm(free)] * 3, atol=1e-14
        )
        # An unlimited step starts from x, where its own faces count.
        options |= {"step_size": math.inf, "epsilon": 0.1, "num_steps": 3}
        far = attacked(attacks.pga, x, ZEROS, random_start=False, **options)
        np.testing.assert_allclose(far, found, atol=1e-14)


def test_points_off_the_faces_are_those_of_the_published_attack() -> None:
    options = {"p": 2.0, "epsilon": EPSILON}
    x, key = points(dtype=np.float32), jax.random.key(1)
    found = attacked(attacks.pga, x, ZEROS, key, **options)
    published = attacked(attacks.pga, x, ZEROS, key, skip_blocked=False, **options)
    np.testing.assert_array_equal(found, published)


def test_without_bounds_points_leave_the_box() -> None:
    x = np.zeros((3, 6), np.float32)
    options = {"p": math.inf, "epsilon": 0.5, "bounds": None}
    found = attacked(attacks.fgm, x, ZEROS, **options)
    np.testing.assert_array_equal(found, [-0.5 * np.sign(W)] * 3)


def test_each_example_has_its_own_budget_and_step() -> None:
    x = points(dtype=np.float32)
    epsilon = jnp.array([0.0, 0.01, 0.1])
    found = attacks.fgm(p=2.0, epsilon=epsilon)(affine, jnp.asarray(x), ZEROS)
    np.testing.assert_allclose(np.linalg.norm(found - x, axis=1), epsilon, atol=1e-6)
    attack = attacks.pga(
        p=2.0,
        epsilon=0.1,
        step_size=np.array([0.02, 0.05, math.inf]),
        num_steps=1,
        random_start=False,
    )
    moved = np.linalg.norm(attack(affine, jnp.asarray(x), ZEROS) - x, axis=1)
    np.testing.assert_allclose(moved, [0.02, 0.05, 0.1], atol=1e-6)


def test_a_list_of_budgets_and_steps_is_traced_once() -> None:
    x = jnp.asarray(points(dtype=np.float32))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(epsilon, step_size):
        attack = attacks.pga(
            p=2.0, epsilon=epsilon, step_size=step_size, random_start=False
        )
        return attack(affine, x, ZEROS)

    for epsilon in (0.0, 0.05, 0.1, 0.2):
        for step_size in (epsilon + 0.01, math.inf):
            found = run(jnp.float32(epsilon), jnp.float32(step_size))
            moved = np.linalg.norm(found - x, axis=1)
            np.testing.assert_allclose(moved, epsilon, atol=1e-5)


def test_a_saturated_softmax_still_has_a_gradient() -> None:
    # exp(-margin) underflows at margins of 87: no form of this loss helps beyond.
    x = jnp.asarray(points(dtype=np.float32))
    offset = jnp.array([60.0, 0.0])
    found = attacks.fgm(p=2.0, epsilon=EPSILON)(lambda z: affine(z) + offset, x, ZEROS)
    worst = -EPSILON * steepest(2.0)[0]
    np.testing.assert_allclose(found - x, [worst] * 3, atol=1e-6)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_fgm(self):
        x = jnp.asarray(points(dtype=np.float32))
        attack = attacks.fgm(p=2.0, epsilon=EPSILON)
        found = self.variant(lambda x: attack(affine, x, jnp.zeros(len(x), int)))(x)
        moved = np.asarray(found) - x
        worst = np.broadcast_to(-EPSILON * steepest(2.0)[0], moved.shape)
        np.testing.assert_allclose(moved, worst, atol=1e-6)
