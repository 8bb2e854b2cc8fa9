"""tests: the sanity checks pass an honest network and catch masked gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis

W = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.2, 0.8, (40, 2, 2, 3)).astype(np.float32)
COUNTER = iter(range(10**6))


def honest(w, x):
    """A smooth network of four classes."""
    return jnp.tanh(x.reshape(len(x), -1) @ w - jnp.sum(w, axis=0) / 2) * 5


def quantised(w, x):
    """Its gradient is zero everywhere; decisions are those of a coarse picture."""
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


def broken(w, x):
    """The gradient of the root is not finite where its argument is negative."""
    return honest(w, x) + jnp.sqrt(jnp.maximum(x.reshape(len(x), -1)[:, :1] - 0.5, 0))


NETWORKS = (honest, quantised, obfuscated)


def any_network(variables, x):
    """The three as one program, which is compiled once."""
    kind, w = variables
    outputs = [network(w, x) for network in NETWORKS]
    return jnp.select([kind == i for i in range(3)], outputs)


def failed(network, p=math.inf, epsilon=0.1):
    apply, variables = network, W
    if network in NETWORKS:
        apply, variables = any_network, (NETWORKS.index(network), W)
    labels = np.asarray(jnp.argmax(network(W, IMAGES), axis=1))
    checks = analysis.sanity_checks(
        apply,
        variables,
        IMAGES,
        labels,
        p=p,
        epsilon=epsilon,
        num_steps=10,
        num_queries=60,
        batch_size=40,
        key=jax.random.key(0),
    )
    assert len(checks) == 10 and all(check.detail for check in checks)
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
        (restless, "the network is deterministic"),
        (two_classes, "there are classes enough for the DLR losses"),
        (broken, "gradients are finite"),
    ],
)
def test_other_signs_are_found_alone(network, name, monkeypatch) -> None:
    # The comparisons of attacks are held above.
    monkeypatch.setattr("opnorm.analysis.sanity.attack_examples", _nothing)
    names = failed(network) - {"accuracy reaches 0 as epsilon grows"}
    assert names == {name}


def _nothing(*_, epsilons, **__):
    success = np.zeros((len(epsilons), 40), bool)
    return analysis.Attacked(success, success, success, success, None, 0)


def test_squares_that_gain_on_gradients_are_a_warning() -> None:
    assert analysis.square_check(0.5, 0.499).passed
    assert not analysis.square_check(0.5, 0.45).passed


def test_images_with_channels_elsewhere_are_refused_before_anything_is_run():
    def never(_, x):
        raise AssertionError("the network was evaluated")

    images, labels = np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int32)
    options = {"p": 2.0, "epsilon": 0.1, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="axis 1 with 3 entries .*channels='first'"):
        analysis.sanity_checks(never, None, images, labels, **options)
    with pytest.raises(AssertionError, match="evaluated"):
        analysis.sanity_checks(never, None, images, labels, channels="first", **options)
