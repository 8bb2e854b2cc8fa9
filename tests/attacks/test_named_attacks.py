"""Every attack that has a name keeps budget, box and rows."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks
from tests.support import named_attacks

EPSILON = 0.3
# The default, which is float64 in one of the suite's modes.
FLOAT = np.dtype(jnp.zeros(()).dtype)
SHAPE = (4, 4, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(math.prod(SHAPE), 3))
WEIGHTS = WEIGHTS.astype(FLOAT)
BROKEN = (
    "smooth",
    "nan",
    "inf",
    "constant",
    "saturated",
    "steps",
    "some_nan",
    "masked",
)


@jax.jit
def logits_of(kind, x):
    """Three classes; every kind of network in one program."""
    flat = x.reshape(len(x), -1)
    smooth = jnp.tanh(flat @ jnp.asarray(WEIGHTS, x.dtype))
    values = jnp.where(kind == BROKEN.index("steps"), jnp.sign(smooth), smooth)
    some = (kind == BROKEN.index("some_nan")) & (flat[:, :1] > 0.5)
    # By what the logits are multiplied, and what is added to them.
    factor = jnp.asarray([1, 0, 0, 0, 1e6, 1, 1, 1], x.dtype)[kind]
    shift = jnp.asarray([0, jnp.nan, jnp.inf, 1, 0, 0, 0, 0], x.dtype)[kind]
    logits = factor * values + jnp.where(some, jnp.nan, shift)
    masked = (kind == BROKEN.index("masked")) & (jnp.arange(3) == 2)
    return jnp.where(masked, -jnp.inf, logits)


def cases():
    for name in attacks.NAMES:
        # The ensemble's members are all here by themselves, and uniform noise is pga
        # without steps.
        once = name in ("auto_attack", "uniform_noise")
        usual = named_attacks.usual_norm(name)
        for p in [usual] if once else named_attacks.norms(name):
            typed = p == usual or (name, p) in (("pga", math.inf), ("fab", math.inf))
            marks = [pytest.mark.dtypes] if typed and not once else []
            yield pytest.param(name, p, marks=marks)


# Units of the entries, some of which may not change.
SCALE = np.random.default_rng(2).uniform(0.5, 2, SHAPE)
MASK = np.random.default_rng(3).uniform(size=SHAPE) < 0.8


def is_weighted(name, p):
    """Whether the case is of a weighted attack: those of all norms but the usual."""
    return p != named_attacks.usual_norm(name)


def make(name, p, epsilon=EPSILON):
    if not is_weighted(name, p):
        return named_attacks.make(name, p, epsilon)
    box = {"bounds": (np.zeros(SHAPE), np.ones(3)), "scale": SCALE, "mask": MASK}
    return named_attacks.make(name, p, epsilon, **box)


def lengths(name, p, delta):
    """Lengths of perturbations in the norm of the case, in float64."""
    delta = delta.astype(np.float64)
    if is_weighted(name, p):
        np.testing.assert_array_equal(delta[:, ~MASK], 0)
        delta /= SCALE
    return np.linalg.norm(delta.reshape(len(delta), -1), p, axis=1)


@functools.cache
def runner(name, p):
    @jax.jit
    def run(kind, x, labels, epsilon, keys):
        attack = make(name, p, epsilon)
        return attack.run(functools.partial(logits_of, kind), x, labels, keys)

    return run


def images():
    x = np.random.default_rng(1).uniform(0, 1, (4, *SHAPE)).astype(FLOAT)
    x[0, 0] = [[0, 1, 0]]
    return x


@functools.cache
def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize(("name", "p"), list(cases()))
def test_points_are_sound_whatever_the_network_does(name, p) -> None:
    x, run, attack = images(), runner(name, p), make(name, p)
    for kind in range(len(BROKEN)):
        clean = np.asarray(logits_of(kind, x))
        decisions = np.argmax(clean, axis=1)
        labels = np.where(np.arange(4) == 1, (decisions + 1) % 3, decisions)
        wrong_at_x = np.isnan(clean).any(axis=1) | (decisions != labels)
        for epsilon in (EPSILON, 0.0):
            found = run(kind, x, labels, np.full(4, epsilon, np.float32), keys(4))
            x_adv = np.asarray(found.x_adv)
            assert x_adv.shape == x.shape
            assert x_adv.dtype == x.dtype
            assert np.all(np.isfinite(x_adv)), BROKEN[kind]
            assert x_adv.min() >= 0, BROKEN[kind]
            assert x_adv.max() <= 1, BROKEN[kind]
            length = lengths(name, p, x_adv - x)
            np.testing.assert_allclose(found.distance, length, atol=1e-5)
            if attack.budget:
                assert np.all(length <= epsilon + 1e-5), BROKEN[kind]
            if attack.judges_input and BROKEN[kind] != "saturated":
                np.testing.assert_array_equal(x_adv[wrong_at_x], x[wrong_at_x])
                assert np.all(found.success[wrong_at_x]), BROKEN[kind]
                assert not np.any(found.steps[wrong_at_x])
            logits = np.asarray(logits_of(kind, found.x_adv))
            # A row with NaN decides for no class.
            wrong = np.isnan(logits).any(axis=1) | (np.argmax(logits, axis=1) != labels)
            # Where tanh saturates, rounding decides, and not in every program alike.
            first, second = np.sort(logits, axis=1)[:, :-3:-1].T
            with np.errstate(invalid="ignore"):
                clear = first - second > 1e-5 * np.maximum(np.abs(first), 1)
            clear |= np.isnan(logits).any(axis=1)
            clear |= BROKEN[kind] not in ("smooth", "saturated", "some_nan", "masked")
            np.testing.assert_array_equal(
                found.success[clear], wrong[clear], BROKEN[kind]
            )
            assert np.all(np.asarray(found.steps) >= 0)


@pytest.mark.parametrize(("name", "p"), list(cases()))
def test_an_example_alone_fares_as_in_a_batch(name, p) -> None:
    x, run = images(), runner(name, p)
    labels = np.argmax(logits_of(0, x), axis=1)
    epsilon = np.linspace(0.1, 0.4, 4, dtype=np.float32)
    whole = run(0, x, labels, epsilon, keys(4))
    order = np.array([2, 0, 3, 1])
    mixed = run(0, x[order], labels[order], epsilon[order], keys(4)[order])
    np.testing.assert_allclose(mixed.x_adv, np.asarray(whole.x_adv)[order], atol=2e-5)
    np.testing.assert_array_equal(mixed.success, np.asarray(whole.success)[order])


@pytest.mark.parametrize(("name", "p"), list(cases()))
def test_traced_inputs_outside_the_box_keep_the_budget(name, p) -> None:
    x = 4 * images() - 1.5
    labels = np.argmax(logits_of(0, x), axis=1)
    epsilon = np.linspace(0.1, 0.4, 4, dtype=np.float32)
    found = runner(name, p)(0, x, labels, epsilon, keys(4))
    x_adv = np.asarray(found.x_adv)
    assert np.all(np.isfinite(x_adv))
    # Inside the hull of the box and x.
    assert np.all(x_adv >= np.minimum(x, 0))
    assert np.all(x_adv <= np.maximum(x, 1))
    length = lengths(name, p, x_adv - x)
    np.testing.assert_allclose(found.distance, length, atol=1e-5)
    if make(name, p).budget:
        assert np.all(length <= epsilon + 1e-5)
        # No attack stands still there.
        if name not in ("auto_attack", "fab", "fgm"):
            assert np.all(length[~np.asarray(found.success)] > 0)


@pytest.mark.parametrize("name", attacks.NAMES)
def test_one_logit_is_refused(name) -> None:
    attack = make(name, named_attacks.usual_norm(name))
    x, labels = np.full((1, 2, 2, 1), 0.4, np.float32), np.zeros(1, int)

    def one(z):
        return jnp.sum(z.reshape(1, -1), axis=1, keepdims=True)

    if attack.needs_classes:
        with pytest.raises(ValueError, match=r"1 logit; .*concatenate\(\[jnp.zeros_li"):
            jax.eval_shape(lambda x: attack.run(one, x, labels, jax.random.key(0)), x)


@pytest.mark.parametrize("name", sorted({*attacks.NAMES} - {"auto_attack", "pga"}))
def test_attacks_are_traced_on_explicit_meshes_and_under_shard_map(name) -> None:
    # Types say what a mesh allows, so that nothing need be compiled to see it. Values
    # are compared in test_attack_contract.py, for pga.
    p = named_attacks.usual_norm(name)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    by_row, shared = jax.P("data"), jax.P()
    weights = jax.device_put(WEIGHTS, jax.NamedSharding(mesh, shared))
    rows = (images(), np.zeros(4, int), np.full(4, EPSILON, np.float32), keys(4))
    rows = jax.device_put(rows, jax.NamedSharding(mesh, by_row))

    def run(weights, x, labels, epsilon, keys):
        def f(z):
            return z.reshape(len(z), -1) @ weights

        return make(name, p, epsilon).run(f, x, labels, keys)

    found = jax.eval_shape(run, weights, *rows)
    chex.assert_shape(found.x_adv, (4, *SHAPE))
    assert found.x_adv.sharding.spec == jax.P("data", None, None, None)
    assert found.success.sharding.spec == jax.P("data")
    specs = (shared, by_row, by_row, by_row, by_row)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=by_row)
    assert jax.eval_shape(mapped, weights, *rows).x_adv.shape == (4, *SHAPE)


def test_every_factory_of_the_room_has_a_name() -> None:
    def makes(value) -> bool:
        """Whether it returns an attack, and is not made of other attacks."""
        known = inspect.signature(value, eval_str=True)
        adapts = {"attack", "attacks"} & set(known.parameters)
        return known.return_annotation is attacks.Attack and not adapts

    functions = {k: v for k, v in vars(attacks).items() if inspect.isfunction(v)}
    factories = {name for name, value in functions.items() if makes(value)}
    assert factories - {"make"} == set(attacks.NAMES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "attack is 'magic'; it may be apgd, "),
        ("pga", {"epsilon": None}, "epsilon is None; pga needs a budget"),
        ("pga", {"num_step": 3}, "pga has no option 'num_step'; it has .*num_steps"),
        ("square", {"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
        ("fgm", {"epsilon": -1.0}, "epsilon is -1"),
        (
            "deepfool",
            {"bounds": (0.0, np.ones(6, bool))},
            "bounds is .0.0, an array of",
        ),
        ("fab", {"bounds": (np.float32([0, 1]), np.float32([1, 0]))}, r"\(1, 0\) in e"),
        ("pga", {"bounds": (np.zeros(3), np.ones(2))}, "shapes of its ends must fit"),
        ("fgm", {"bounds": (np.zeros(2), math.nan)}, "bounds is .0, nan. in entry"),
        ("fgm", {"scale": -1.0}, "scale is -1.0; it must be known numbers"),
        ("fgm", {"scale": np.zeros(2)}, "not all zero"),
        ("fgm", {"mask": np.zeros(2, bool)}, "mask is .*with an entry that may change"),
        ("fgm", {"mask": [1, 0]}, "mask is .1, 0.; it must be a known array of bool"),
        ("fgm", {"mask": np.ones(3, bool), "scale": np.ones(2)}, "must fit together"),
        ("fgm", {"mask": np.array([1, 0], bool), "scale": [0, 1]}, "leave no entry"),
        ("wrm", {"bounds": (0.0, "1"), "gamma": 1.0}, "bounds is .0.0, '1'.; it must"),
        (
            "fgm",
            {"bounds": 1.0},
            "bounds is 1.0; it must be .low, high. with low < high",
        ),
    ],
)
def test_bad_requests_are_refused_by_name(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacks.make(name, **{"p": 2.0, "epsilon": 0.1} | options)


def test_which_attacks_need_a_budget() -> None:
    assert attacks.needs_budget("pga")
    assert attacks.needs_budget("auto_attack")
    assert not attacks.needs_budget("fab")
    with pytest.raises(ValueError, match="magic"):
        attacks.needs_budget("magic")
