"""CW, DeepFool, DDN and FMN find the nearest point of an affine boundary."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg

N = 48
W = np.random.default_rng(0).normal(size=N)
# Per example, so that attacks must treat each by itself.
MARGINS = np.array([0.2, 0.6, 1.5, 3.0])
ATTACKS = {
    "carlini_wagner": functools.partial(
        attacks.carlini_wagner, num_steps=300, num_searches=7
    ),
    "deepfool": attacks.deepfool,
    "deepfool_inf": functools.partial(attacks.deepfool, p=math.inf),
    "decoupled_direction": attacks.decoupled_direction,
    "fmn_1": functools.partial(
        attacks.fast_minimum_norm, p=1.0, num_steps=200, bounds=(-5.0, 6.0)
    ),
    "fmn_2": functools.partial(attacks.fast_minimum_norm, p=2.0),
    "fmn_inf": functools.partial(attacks.fast_minimum_norm, p=math.inf),
}
# How far beyond the nearest point each may end.
REACH = {
    "carlini_wagner": 1.02,
    # DeepFool's overshoot, and its least step of 1e-4.
    "deepfool": 1.0236,
    "deepfool_inf": 1.0376,
    "decoupled_direction": 1.01,
    "fmn_1": 1.03,
    "fmn_2": 1.03,
    "fmn_inf": 1.03,
}


def affine(offset, x):
    """Two classes of margin <W, x> + offset, whose gradients are all the same."""
    margin = x.reshape(len(x), -1) @ jnp.asarray(W, x.dtype) + offset
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def images(count=4):
    return jnp.full((count, 4, 4, 3), 0.5)


def offsets(x, margins):
    return jnp.asarray(margins - x.reshape(len(x), -1) @ W, jnp.float32)


@functools.cache
def runner(name):
    attack = ATTACKS[name]()

    @jax.jit
    def run(offset, x, labels, keys):
        return attack.run(functools.partial(affine, offset), x, labels, keys)

    return run


def nearest(name, margins=MARGINS):
    x = images(len(margins))
    keys = jax.random.split(jax.random.key(0), len(x))
    offset = offsets(x, margins)
    found = runner(name)(offset, x, jnp.zeros(len(x), int), keys)
    p = ATTACKS[name]().p
    return found, margins / np.linalg.norm(W, linalg.conjugate_exponent(p))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_nearest_point_is_found_and_never_undercut(name) -> None:
    found, exact = nearest(name)
    assert found.success.all()
    ratio = np.asarray(found.distance) / exact
    assert np.all(ratio >= 1 - 1e-5), ratio
    assert np.all(ratio <= REACH[name]), ratio


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_wrong_already_is_left_where_it_is(name) -> None:
    found, _ = nearest(name, np.array([-0.1, 0.2, -1.0, 0.3]))
    np.testing.assert_array_equal(found.distance[::2], 0)
    np.testing.assert_array_equal(found.x_adv[::2], images(2))
    np.testing.assert_array_equal(found.steps[::2], 0)
    assert found.success.all()


@pytest.mark.parametrize("name", ATTACKS)
def test_examples_do_not_depend_on_each_other(name) -> None:
    found, _ = nearest(name)
    x, order = images(), np.array([2, 0, 3, 1])
    keys = jax.random.split(jax.random.key(0), 4)[order]
    offset = offsets(x, MARGINS)[order]
    mixed = runner(name)(offset, x, jnp.zeros(4, int), keys)
    np.testing.assert_allclose(mixed.x_adv, found.x_adv[order], atol=1e-6)
    np.testing.assert_array_equal(mixed.steps, found.steps[order])


def test_deepfool_ends_after_one_step_on_an_affine_network() -> None:
    found, exact = nearest("deepfool")
    # One evaluation before the step, one that sees it succeed.
    np.testing.assert_array_equal(found.steps, 2)
    exact = exact + 1e-4
    np.testing.assert_allclose(found.distance, 1.02 * exact, rtol=1e-5)
    along = (found.x_adv - images()).reshape(4, -1)
    expected = -1.02 * exact[:, None] * W / np.linalg.norm(W)
    np.testing.assert_allclose(along, expected, atol=1e-6)


def test_carlini_wagner_raises_the_constant_until_it_suffices() -> None:
    # In x, ||x' - x||^2 + c margin has its minimum at c ||W|| / 2, which is beyond the
    # boundary only for c >= 2 t / ||W||.
    size = np.linalg.norm(W)
    exact = MARGINS / size
    for searches, constant in ((1, 1e-3), (2, 1e-2), (3, 1e-1), (4, 1.0)):
        attack = attacks.carlini_wagner(
            num_steps=400, num_searches=searches, abort_early=False
        )
        x = images()
        f = functools.partial(affine, offsets(x, MARGINS))
        found = jax.jit(lambda x, f=f, a=attack: a.run(f, x, jnp.zeros(4, int)))(x)
        assert found.success.all()
        # The other examples have walked to a corner of the box after their searches.
        succeeded = np.asarray(found.steps) == 400 * searches
        enough = constant >= 2 * exact / size
        clear = np.abs(np.log(constant * size / (2 * exact))) > 0.1
        np.testing.assert_array_equal(succeeded[clear], enough[clear], str(searches))


@pytest.mark.parametrize("targeted", [False, True])
def test_carlini_wagner_reaches_its_confidence_wherever_it_begins(targeted) -> None:
    options = {"num_steps": 300, "num_searches": 6, "initial_constant": 0.01}
    attack = attacks.carlini_wagner(confidence=0.5, targeted=targeted, **options)
    x = images()
    # Right; wrong by less than the confidence; by just enough; out of reach of the box.
    margins = np.array([0.2, -0.05, -0.51, 40.0])
    f = functools.partial(affine, offsets(x, margins))
    labels = jnp.full(4, int(targeted))
    found = jax.jit(lambda x: attack.run(f, x, labels))(x)
    np.testing.assert_array_equal(found.success, [True, True, True, False])
    logits = f(found.x_adv)
    assert np.all((logits[:, 1] - logits[:, 0])[:3] >= 0.5)
    exact = (margins[:2] + 0.5) / np.linalg.norm(W)
    ratio = np.asarray(found.distance[:2]) / exact
    assert np.all((ratio >= 1 - 1e-5) & (ratio <= 1.02)), ratio
    np.testing.assert_array_equal(found.distance[2:], 0)


# Networks of two layers and three classes, one for each example, whose pixels are at 0
# and 1 as well. The first 40 have ReLUs, the others are affine.
LAYERED, RECTIFIED = 64, 40
SEARCHES = {
    "carlini_wagner": functools.partial(
        attacks.carlini_wagner, num_steps=20, num_searches=2
    ),
    "decoupled_direction": attacks.decoupled_direction,
    "deepfool": attacks.deepfool,
    "fab": functools.partial(attacks.fab, p=2.0, num_steps=20),
    "fmn_1": functools.partial(attacks.fast_minimum_norm, p=1.0),
    "fmn_2": functools.partial(attacks.fast_minimum_norm, p=2.0),
    "fmn_inf": functools.partial(attacks.fast_minimum_norm, p=math.inf),
    "log_barrier": functools.partial(
        attacks.log_barrier, num_outer=1, num_inner=10, num_tries=2
    ),
}


@functools.cache
def layered():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(LAYERED, 8, 6)), rng.normal(size=(LAYERED, 6, 3))
    shift, bias = rng.normal(size=(LAYERED, 6)), 2 * rng.normal(size=(LAYERED, 3))
    x = rng.uniform(size=(LAYERED, 8))
    x = np.where(x < 0.3, 0, np.where(x > 0.7, 1, x))
    # In the last the steepest pixel, the first, cannot fall; along the second one the
    # boundary is 0.4 away.
    x[-1, :2], first[-1], shift[-1], second[-1] = (0, 0.9), 0, 0, 0
    first[-1, :2, 0], second[-1, 0, 0], bias[-1] = (10, 1), 1, (-0.5, 0, -100)
    return [a.astype(np.float32) for a in (x, first, shift, second, bias)]


def layers(first, shift, second, bias, x, xp=jnp):
    hidden = xp.einsum("bi...,bij->bj...", x, first)
    hidden = hidden + shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
    linear = np.arange(LAYERED).reshape(-1, *(1,) * (x.ndim - 1)) >= RECTIFIED
    hidden = xp.where(linear, hidden, xp.maximum(hidden, 0))
    logits = xp.einsum("bj...,bjk->bk...", hidden, second)
    return logits + bias.reshape(*bias.shape, *(1,) * (x.ndim - 2))


def test_no_search_misses_what_a_corner_of_the_box_has() -> None:
    x, *weights = layered()
    exact = [w.astype(np.float64) for w in weights]
    labels = np.argmax(layers(*exact, x.astype(np.float64), xp=np), axis=1)
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=8))).T
    corners = np.broadcast_to(corners, (LAYERED, *corners.shape))
    decisions = np.argmax(layers(*exact, corners, xp=np), axis=1)
    # A difference of two logits that are affine is largest at a corner.
    breakable = np.any(decisions != labels[:, None], axis=1)
    assert not breakable[RECTIFIED:].all()
    assert breakable.sum() > 50
    keys = jax.random.split(jax.random.key(0), LAYERED)
    found = {}
    for name, make in SEARCHES.items():

        def run(weights, x, labels, keys, make=make):
            return make().run(functools.partial(layers, *weights), x, labels, keys)

        found[name] = jax.jit(run)(weights, x, labels, keys)
    hits = {name: np.asarray(result.success) for name, result in found.items()}
    missed = {name: np.sum(breakable & ~hit) for name, hit in hits.items()}
    assert missed["fmn_2"] <= missed["decoupled_direction"]
    for name, hit in hits.items():
        np.testing.assert_array_equal(hit[RECTIFIED:], breakable[RECTIFIED:], name)
        assert missed[name] <= 1, missed
        if name in REACH and name != "carlini_wagner":
            distance = found[name].distance[-1]
            assert 0.4 <= distance <= 0.4 * REACH[name], name
        moved = found[name].x_adv
        assert np.all((moved >= 0) & (moved <= 1)), name


THREE = np.random.default_rng(3).normal(size=(N, 3))


def three(x):
    return (x.reshape(len(x), -1) - 0.5) @ jnp.asarray(THREE, x.dtype) + jnp.array(
        [0.4, 0.0, -0.3]
    )


@pytest.mark.parametrize("name", ["deepfool", "decoupled_direction", "fmn_2"])
def test_of_several_classes_the_nearest_is_found(name) -> None:
    x = images(1)
    normals = THREE[:, 1:] - THREE[:, :1]
    exact = np.min(np.array([0.4, 0.7]) / np.linalg.norm(normals, axis=0))
    attack = ATTACKS[name]()
    found = jax.jit(lambda x, k: attack.run(three, x, jnp.zeros(1, int), k))(
        x, jax.random.key(0)
    )
    ratio = float(found.distance[0] / exact)
    # DDN follows the cross-entropy, which is not the margin of the nearest class.
    assert 1 - 1e-5 <= ratio <= (1.2 if name == "decoupled_direction" else 1.03)


@pytest.mark.parametrize("target", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(attacks.carlini_wagner, num_steps=200, num_searches=6),
        attacks.decoupled_direction,
        functools.partial(attacks.fast_minimum_norm, p=2.0),
    ],
)
def test_targets_are_reached(make, target) -> None:
    x, attack = images(2), make(targeted=True)
    labels = jnp.array([target, 0])
    found = jax.jit(lambda x, k: attack.run(three, x, labels, k))(x, jax.random.key(0))
    decisions = np.argmax(three(found.x_adv), axis=1)
    np.testing.assert_array_equal(decisions, labels)
    # Class 0 is where the second example is already.
    assert found.distance[0] > 0
    assert found.distance[1] == 0


def test_a_zero_gradient_gets_a_random_direction_where_there_is_a_key() -> None:
    def rounded(x):
        return three(jnp.round(x * 4) / 4 + 0 * x)

    x, attack = images(2), attacks.decoupled_direction(initial_epsilon=3.0)
    labels = jnp.argmax(rounded(x), axis=1)
    # Without one only the walk from other corners of the box moves.
    assert np.all(attack.run(rounded, x, labels).steps > 101)
    moved = attack.run(rounded, x, labels, jax.random.key(0))
    assert moved.success.all()
    assert np.all(moved.steps == 101)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (attacks.carlini_wagner, {"num_steps": 0}, "num_steps is 0"),
        (attacks.carlini_wagner, {"learning_rate": 0.0}, "learning_rate is 0"),
        (attacks.carlini_wagner, {"confidence": -1.0}, "confidence is -1"),
        (attacks.carlini_wagner, {"bounds": 1}, "bounds is 1; it must be"),
        (attacks.deepfool, {"p": 1.0}, "p is 1; this attack knows 2, inf"),
        (attacks.deepfool, {"num_candidates": 1}, "num_candidates is 1"),
        (attacks.deepfool, {"overshoot": -0.1}, "overshoot is -0.1"),
        (attacks.decoupled_direction, {"gamma": 1.0}, "gamma is 1"),
        (attacks.decoupled_direction, {"bounds": (1, 0)}, "bounds is .1, 0.; it must"),
        (attacks.fast_minimum_norm, {"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
    ],
)
def test_bad_options_are_refused_by_name(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
