"""tests: what holds for every attack that has a name."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks
from opnorm.attacks import registry

EPSILON = 0.3
SHAPE = (4, 4, 3)
# Few steps each: what is held here does not need a strong attack.
OPTIONS = {
    "apgd": {"num_steps": 6, "loss": "dlr_targeted", "num_targets": 2},
    "auto_attack": {"num_steps": 3, "num_queries": 4},
    "boundary": {"num_steps": 30},
    "carlini_wagner": {"num_steps": 6, "num_searches": 2},
    "decoupled_direction": {"num_steps": 6},
    "deepfool": {"num_steps": 6},
    "fab": {"num_steps": 4, "num_targets": 2},
    "fast_minimum_norm": {"num_steps": 6},
    "fgm": {},
    "gaussian_noise": {},
    "log_barrier": {"num_outer": 2, "num_inner": 10},
    "pga": {"num_steps": 3, "num_restarts": 2, "keep": "success"},
    "square": {"num_queries": 8},
    "uniform_noise": {"num_draws": 3},
    "wrm": {"gamma": 1.0, "bounds": (0.0, 1.0)},
}
NORMS = (1.0, 2.0, math.inf)
BROKEN = ("smooth", "nan", "inf", "constant", "saturated", "steps", "some_nan")


@jax.jit
def logits_of(kind, x):
    """Three classes; every kind of network in one program."""
    flat = x.reshape(len(x), -1)
    weights = np.random.default_rng(0).normal(size=(flat.shape[1], 3))
    smooth = jnp.tanh(flat @ jnp.asarray(weights, x.dtype))
    values = jnp.where(kind == BROKEN.index("steps"), jnp.sign(smooth), smooth)
    some = (kind == BROKEN.index("some_nan")) & (flat[:, :1] > 0.5)
    # By what the logits are multiplied, and what is added to them.
    factor = jnp.asarray([1, 0, 0, 0, 1e6, 1, 1], x.dtype)[kind]
    shift = jnp.asarray([0, jnp.nan, jnp.inf, 1, 0, 0, 0], x.dtype)[kind]
    return factor * values + jnp.where(some, jnp.nan, shift)


def cases():
    for name in attacks.NAMES:
        for p in NORMS:
            try:
                make(name, p)
            except ValueError:
                continue
            # The ensemble's members are all here by themselves, and uniform noise is
            # pga without steps.
            if name not in ("auto_attack", "uniform_noise") or p == 2:
                yield name, p


def make(name, p, epsilon=EPSILON):
    options = dict(OPTIONS[name])
    options.setdefault("bounds", (0.0, 1.0))
    return attacks.make(name, p=p, epsilon=epsilon, **options)


@functools.cache
def runner(name, p):
    @jax.jit
    def run(kind, x, labels, epsilon, keys):
        attack = make(name, p, epsilon)
        return attack.run(functools.partial(logits_of, kind), x, labels, keys)

    return run


def pictures():
    x = np.random.default_rng(1).uniform(0, 1, (4, *SHAPE)).astype(np.float32)
    x[0, 0] = [[0, 1, 0]]
    return x


@functools.cache
def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize(("name", "p"), list(cases()))
def test_points_are_sound_whatever_the_network_does(name, p) -> None:
    x, run = pictures(), runner(name, p)
    budget = make(name, p).budget and name != "wrm"
    for kind in range(len(BROKEN)):
        decisions = np.argmax(logits_of(kind, x), axis=1)
        labels = np.where(np.arange(4) == 1, (decisions + 1) % 3, decisions)
        for epsilon in (EPSILON, 0.0):
            found = run(kind, x, labels, np.full(4, epsilon, np.float32), keys(4))
            x_adv = np.asarray(found.x_adv)
            assert x_adv.shape == x.shape and x_adv.dtype == np.float32
            assert np.all(np.isfinite(x_adv)), BROKEN[kind]
            assert x_adv.min() >= 0 and x_adv.max() <= 1, BROKEN[kind]
            delta = (x_adv - x).reshape(4, -1).astype(np.float64)
            length = np.linalg.norm(delta, p, axis=1)
            np.testing.assert_allclose(found.distance, length, atol=1e-5)
            if budget:
                assert np.all(length <= epsilon + 1e-5), BROKEN[kind]
            logits = np.asarray(logits_of(kind, found.x_adv))
            # A row with NaN decides for no class.
            wrong = np.isnan(logits).any(axis=1) | (np.argmax(logits, axis=1) != labels)
            # Where tanh saturates, rounding decides, and not in every program alike.
            first, second = np.sort(logits, axis=1)[:, :-3:-1].T
            with np.errstate(invalid="ignore"):
                clear = first - second > 1e-5 * np.maximum(np.abs(first), 1)
            clear |= np.isnan(logits).any(axis=1)
            clear |= BROKEN[kind] not in ("smooth", "saturated", "some_nan")
            np.testing.assert_array_equal(
                found.success[clear], wrong[clear], BROKEN[kind]
            )
            assert np.all(np.asarray(found.steps) >= 0)


@pytest.mark.parametrize(("name", "p"), list(cases()))
def test_an_example_alone_fares_as_in_a_batch(name, p) -> None:
    x, run = pictures(), runner(name, p)
    labels = np.argmax(logits_of(0, x), axis=1)
    epsilon = np.linspace(0.1, 0.4, 4, dtype=np.float32)
    whole = run(0, x, labels, epsilon, keys(4))
    order = np.array([2, 0, 3, 1])
    mixed = run(0, x[order], labels[order], epsilon[order], keys(4)[order])
    np.testing.assert_allclose(mixed.x_adv, np.asarray(whole.x_adv)[order], atol=2e-5)
    np.testing.assert_array_equal(mixed.success, np.asarray(whole.success)[order])


@pytest.mark.parametrize("name", sorted({name for name, _ in cases()}))
def test_one_class_and_one_example_are_enough(name) -> None:
    p = 2.0 if (name, 2.0) in cases() else math.inf
    attack = make(name, p)
    x, key = np.full((1, 2, 2, 1), 0.4, np.float32), jax.random.key(0)

    def f(z):
        return jnp.sum(z.reshape(1, -1), axis=1, keepdims=True)

    run = jax.jit(lambda x, key: attack.run(f, x, np.zeros(1, int), key))
    if name == "auto_attack":
        # Its members are compiled by themselves.
        jax.eval_shape(run, x, key)
        return
    found = run(x, key)
    assert not found.success[0]
    assert np.all(np.isfinite(found.x_adv))


def test_every_factory_of_the_room_has_a_name() -> None:
    factories = {
        name
        for name, value in vars(attacks).items()
        if inspect.isfunction(value)
        and inspect.signature(value, eval_str=True).return_annotation is attacks.Attack
    }
    assert factories - {"make", "best_distance", "first_success"} == set(attacks.NAMES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "attack is 'magic'; it may be apgd, "),
        ("pga", {"epsilon": None}, "epsilon is None; pga needs a budget"),
        ("pga", {"num_step": 3}, "pga has no option 'num_step'; it has .*num_steps"),
        ("square", {"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
        ("fgm", {"epsilon": -1.0}, "epsilon is -1"),
    ],
)
def test_bad_requests_are_refused_by_name(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacks.make(name, **{"p": 2.0, "epsilon": 0.1} | options)


def test_which_attacks_need_a_budget() -> None:
    assert registry.needs_budget("pga") and registry.needs_budget("auto_attack")
    assert not registry.needs_budget("fab")
    with pytest.raises(ValueError, match="magic"):
        registry.needs_budget("magic")
