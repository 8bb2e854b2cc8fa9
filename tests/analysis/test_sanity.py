"""The sanity checks pass an honest network and catch masked gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks
from opnorm.analysis import sanity

Partial = jax.tree_util.Partial
W = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.2, 0.8, (40, 2, 2, 3)).astype(np.float32)
COUNTER = iter(range(10**6))


def honest(w, x):
    """A smooth network of four classes."""
    return jnp.tanh(x.reshape(len(x), -1) @ w - jnp.sum(w, axis=0) / 2) * 5


def quantised(w, x):
    """The gradient is zero everywhere; decisions are those of a coarse image."""
    return honest(w, jnp.round(x * 8) / 8)


def obfuscated(w, x):
    """A tiny term whose gradient points the wrong way drowns that of the network."""
    clean = honest(w, x)
    return jnp.round(clean * 4) / 4 - 1e-3 * clean


def probabilities(w, x):
    return jax.nn.softmax(honest(w, x))


def restless(w, x):
    noise = jax.pure_callback(
        lambda: np.float32(next(COUNTER)), jax.ShapeDtypeStruct((), jnp.float32)
    )
    return honest(w, x) + 0.01 * noise * jnp.arange(4)


def two_classes(w, x):
    return honest(w, x)[:, :2]


def coupled(w, x):
    """BatchNorm in train mode: the statistics are those of the batch."""
    logits = honest(w, x)
    return (logits - logits.mean(axis=0)) / logits.std(axis=0)


def masked(w, x):
    """Dropout whose mask depends on the place in the batch."""
    mask = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape)
    return honest(w, jnp.where(mask, x, 0.5))


def broken(w, x):
    """The gradient of the root is not finite where its argument is negative."""
    return honest(w, x) + jnp.sqrt(jnp.maximum(x.reshape(len(x), -1)[:, :1] - 0.5, 0))


NETWORKS = (honest, quantised, obfuscated)


def any_network(variables, x):
    """The three networks as one program, which is compiled once."""
    kind, w = variables
    outputs = [network(w, x) for network in NETWORKS]
    return jnp.select([kind == i for i in range(3)], outputs)


def check(network, images=IMAGES, p=math.inf, epsilon=0.1, **options):
    f = Partial(network, W)
    if network in NETWORKS:
        f = Partial(any_network, (np.int32(NETWORKS.index(network)), W))
    labels = np.asarray(jnp.argmax(network(W, IMAGES), axis=1))
    checks = analysis.sanity_checks(
        f,
        images,
        labels,
        p=p,
        epsilon=epsilon,
        num_steps=10,
        num_queries=60,
        batch_size=40,
        key=jax.random.key(0),
        **options,
    )
    assert all(check.detail for check in checks)
    return checks


def failed(network, *arguments, **options):
    checks = check(network, *arguments, **options)
    assert len(checks) == 13
    return {check.name for check in checks if not check.passed}


def test_an_honest_network_passes() -> None:
    assert failed(honest) == set()


def test_zero_gradients_are_found() -> None:
    names = failed(quantised, epsilon=0.15)
    assert "gradients are not zero" in names
    assert "white-box attacks beat a black-box one" in names
    assert "accuracy reaches 0 as epsilon grows" in names


def test_gradients_that_mislead_are_found() -> None:
    names = failed(obfuscated)
    assert "gradients are not zero" not in names
    assert "white-box attacks beat a black-box one" in names


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (probabilities, "the network returns logits"),
        (coupled, "rows are independent"),
        (masked, "rows are independent"),
        (two_classes, "there are classes enough for the DLR losses"),
        (broken, "gradients are finite"),
    ],
)
def test_other_signs_are_found_alone(network, name, monkeypatch) -> None:
    # Other tests check the comparisons of attacks.
    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", _nothing)
    names = failed(network) - {"accuracy reaches 0 as epsilon grows"}
    assert names == {name}


def test_a_random_network_is_neither_deterministic_nor_of_independent_rows(
    monkeypatch,
) -> None:
    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", _nothing)
    found = {entry.name: entry for entry in check(restless) if not entry.passed}
    names = set(found) - {"accuracy reaches 0 as epsilon grows"}
    assert names == {"the network is deterministic", "rows are independent"}
    detail = found["the network is deterministic"].detail
    assert "f(x, keys) with a key for each example" in detail
    assert "attacks.randomized" in detail


def test_dependence_on_other_rows_names_its_usual_causes(monkeypatch) -> None:
    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", _nothing)
    (found,) = (c for c in check(coupled) if c.name == "rows are independent")
    assert "BatchNorm in train mode" in found.detail
    assert "dropout" in found.detail


@pytest.mark.parametrize(
    ("images", "options", "name", "detail"),
    [
        (IMAGES / 255, {}, "images fill the bounds", "divided by 255 twice"),
        (IMAGES, {"bounds": (0, 255)}, "images fill the bounds", "from 0 to 255"),
        (255 * IMAGES, {"bounds": None}, "images fill the bounds", "bytes"),
        (IMAGES, {"epsilon": 8.0}, "the budget is smaller than the box", "8/255"),
        (IMAGES, {"epsilon": 128.0, "p": 2.0}, "the budget is smaller", "128/255"),
        (IMAGES, {"epsilon": 1.0}, "the budget is smaller than the box", "0.5 turns"),
    ],
)
def test_other_units_are_found(monkeypatch, images, options, name, detail) -> None:
    given = []

    def attack_examples(*arguments, attack, epsilons, **_):
        given.append(attack(np.float32(0.1)).stages[0].bounds)
        return _nothing(epsilons=epsilons)

    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", attack_examples)
    checks = check(honest, images, **options)
    (found,) = (c for c in checks if c.name.startswith(name))
    assert not found.passed
    assert detail in found.detail
    assert len(given) == 6
    assert set(given) == {options.get("bounds", (0.0, 1.0))}


def test_other_units_that_are_meant_pass(monkeypatch) -> None:
    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", _nothing)
    for images, options in (
        (255 * IMAGES, {"bounds": (0.0, 255.0), "epsilon": 8.0}),
        ((IMAGES - 0.5) / 0.1, {"bounds": None}),
        (np.round(255 * IMAGES).astype(np.uint8), {}),
    ):
        checks = check(honest, images, **options)
        units = [c for c in checks if c.name.startswith(("images", "the budget"))]
        assert len(units) == 2
        assert all(c.passed for c in units)


def test_a_single_example_is_checked() -> None:
    labels = np.asarray(jnp.argmax(honest(W, IMAGES[:1]), axis=1))
    found = sanity._basic_checks(Partial(honest, W), IMAGES[:1], labels, 40)
    assert all(c.passed for c in found)
    assert any("a single example cannot tell" in c.detail for c in found)
    assert sanity._no_worse("", np.array([False]), np.array([False])).passed
    assert not sanity._no_worse("", np.array([True]), np.array([False])).passed


def test_masked_classes_hide_no_difference() -> None:
    logits = np.array([[3.0, 4.0, -np.inf, np.nan], [0.0, 1.0, -np.inf, 2.0]])
    moved = logits + np.array([[0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert sanity._difference(logits, logits) == 0
    assert sanity._difference(logits, moved) == pytest.approx(0.1)
    for value in (-np.inf, np.nan):
        other = logits.copy()
        other[1, 0] = value
        assert sanity._difference(logits, other) == math.inf
        assert sanity._difference(other, logits) == math.inf


def test_random_points_take_no_direction_of_a_constant() -> None:
    # XLA takes seconds to fold norms and dual maps of constants while it compiles.
    attack = attacks.uniform_noise(p=math.inf, epsilon=0.1, num_draws=3)

    def draw(x, labels, key):
        return attack.run(lambda z: honest(W, z), x, labels, key).x_adv

    labels = np.zeros(len(IMAGES), int)
    program = str(jax.make_jaxpr(draw)(IMAGES, labels, jax.random.key(0)))
    assert "while" in program
    assert "_dual_map" not in program


def _nothing(*_, epsilons, **__):
    success = np.zeros((len(epsilons), 40), bool)
    return analysis.Attacked(success, success, success, success, None, 0)


def test_squares_that_gain_on_gradients_are_a_warning() -> None:
    assert analysis.square_check(0.5, 0.499).passed
    assert not analysis.square_check(0.5, 0.45).passed


def test_images_with_channels_elsewhere_are_refused_before_anything_is_run():
    def never(x):
        raise AssertionError("the network was evaluated")

    images, labels = np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int32)
    options = {"p": 2.0, "epsilon": 0.1, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"axis 1 with 3 entries .*channels='first'"):
        analysis.sanity_checks(never, images, labels, **options)
    with pytest.raises(AssertionError, match="evaluated"):
        analysis.sanity_checks(never, images, labels, channels="first", **options)
