"""Distances to the boundary of linear networks, in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks
from opnorm.analysis import boundary

COUNT = 8
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.3, (48, 3)).astype(np.float32)
IMAGES = RNG.integers(96, 160, (COUNT, 4, 4, 3)).astype(np.uint8)
# The network below returns NaN for the first value of this image, and no other one.
IMAGES[5, 0, 0, 0] = 200
KEY = jax.random.key(0)


def linear(weight, x):
    """Three classes; NaN for one value of the first pixel."""
    flat = x.reshape(len(x), -1)
    logits = (flat - 0.5) @ weight + jnp.arange(3.0) / 20
    return jnp.where(jnp.abs(flat[:, :1] - 200 / 255) < 1e-6, jnp.nan, logits)


def exact(dual=2):
    """The distance to the nearest of the planes that border the predicted class."""
    weight = WEIGHT.astype(np.float64)
    logits = (IMAGES.reshape(COUNT, 48) / 255 - 0.5) @ weight + np.arange(3) / 20
    found = np.full(COUNT, np.inf)
    for a, b in itertools.permutations(range(3), 2):
        away = logits[:, a] - logits[:, b]
        length = np.linalg.norm(weight[:, a] - weight[:, b], dual)
        predicted = logits.argmax(axis=1) == a
        found[predicted] = np.minimum(found, away / length)[predicted]
    found[5] = np.nan
    return found


def measure(weight, **options):
    f = jax.tree_util.Partial(linear, jnp.asarray(weight))
    given = {"batch_size": COUNT, "key": KEY, **options}
    return analysis.boundary_distance(f, IMAGES, **given)


def fast_in_linf(epsilon):
    del epsilon
    return attacks.fast_minimum_norm(p=np.inf)


@pytest.mark.parametrize(
    ("options", "dual"),
    [({}, 2), ({"p": np.inf, "attacks": [fast_in_linf]}, 1)],
)
def test_least_distance_of_a_linear_network_is_that_in_closed_form(
    options, dual
) -> None:
    found, expected = measure(WEIGHT, **options), exact(dual)
    assert found.nearest == np.nanargmin(expected)
    assert found.v_min == found.distance[found.nearest]
    np.testing.assert_allclose(found.v_min, np.nanmin(expected), rtol=2e-3)
    assert (found.num_found, found.num_images) == (COUNT - 1, COUNT)
    # The attack may end at the wrong plane, but never before the nearest one.
    others = ~np.isnan(expected)
    assert np.all(found.distance[others] >= expected[others] * (1 - 1e-4))
    assert np.sum(np.isclose(found.distance, expected, rtol=5e-3)) >= COUNT - 2
    assert np.isnan(found.distance[5])


def test_balls_come_nearer_to_the_boundary_by_their_radius() -> None:
    whole, ball = measure(WEIGHT), measure(WEIGHT, radius=np.nanmin(exact()) / 4)
    np.testing.assert_array_equal(ball.distance, whole.distance)
    np.testing.assert_allclose(ball.v_min, whole.v_min * 0.75, rtol=2e-3)
    assert measure(WEIGHT, radius=10.0).v_min == 0


def test_a_network_without_a_boundary_has_none() -> None:
    found = measure(np.zeros_like(WEIGHT))
    assert (found.v_min, found.nearest, found.num_found) == (np.inf, -1, 0)
    assert np.all(np.isinf(found.distance) | (np.arange(COUNT) == 5))


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
def test_the_default_attack_has_the_norm_and_is_made_once(p) -> None:
    factory = boundary._default_attack(p, (0.0, 1.0))
    assert factory is boundary._default_attack(p, (0.0, 1.0))
    assert factory(jnp.zeros(1)).p == p


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 3.0}, "p is 3; this attack knows"),
        ({"p": 0.5}, "p is 0.5"),
        ({"radius": -1.0}, "radius is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"bounds": (np.ones(9), 2.0)}, r"bounds has an array of shape \(9,\)"),
        ({"bounds": (0.5, 0.5)}, "bounds"),
        ({"bounds": (0.0, 0.5)}, "images"),
        ({"key": jax.random.PRNGKey(0)}, "key has dtype"),
        ({"index": np.arange(3)}, "index has shape"),
        ({"attacks": []}, "attacks is empty"),
        (
            {"attacks": [lambda e: attacks.fgm(p=2, epsilon=e)]},
            "with a budget and the norm p = 2; it must have no budget and p = 2",
        ),
        (
            {"attacks": [lambda _: attacks.deepfool(p=np.inf)]},
            "with no budget and the norm p = inf; it must have no budget and p = 2",
        ),
    ],
)
def test_bad_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        measure(WEIGHT, **options)
