"""Distance bounds from slope and curvature, against losses that attain them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis

LOSSES = (
    analysis.probability_margin,
    analysis.log_sum_exp_margin,
    analysis.soft_margin,
)


def test_margins_and_how_they_bound_each_other():
    logits = 3 * jax.random.normal(jax.random.key(0), (500, 10))
    labels = jnp.arange(500) % 10
    margin, upper, lower = (loss(logits, labels) for loss in LOSSES)
    p = np.asarray(jax.nn.softmax(logits))
    own = p[np.arange(500), labels]
    rest = p.copy()
    rest[np.arange(500), labels] = -1
    np.testing.assert_allclose(margin, rest.max(axis=1) - own, atol=1e-6)
    assert np.all(lower <= margin + 1e-6)
    assert np.all(margin <= upper + 1e-6)
    assert np.all(upper - margin <= np.log(9) / 10 + 1e-6)
    np.testing.assert_array_equal(margin < 0, np.argmax(logits, axis=1) == labels)
    top = analysis.top_k_margin(logits, labels, k=5)
    among = (np.argsort(-np.asarray(logits), axis=1)[:, :5] == labels[:, None]).any(1)
    np.testing.assert_array_equal(top < 0, among)


def test_the_papers_soft_margin_misjudges_an_example_that_the_valid_one_does_not():
    p = jnp.asarray([[0.31, 0.30] + [0.04875] * 8])
    label = jnp.asarray([1])
    margin, upper, lower = (float(loss(jnp.log(p), label)[0]) for loss in LOSSES)
    np.testing.assert_allclose(margin, 0.01, atol=1e-6)
    np.testing.assert_allclose(lower, -0.0925, atol=1e-4)
    assert upper > 0


def test_a_line_and_a_parabola_attain_their_bounds():
    loss, slope = np.array([-0.6, -0.6, 0.2, -0.5]), np.array([2.0, 0.5, 1.0, 0.0])
    np.testing.assert_allclose(analysis.lipschitz_bound(loss, 2.0)[:3], [0.3, 0.3, 0])
    assert np.isinf(analysis.lipschitz_bound(loss, slope)[3])
    curvature = 4.0
    reach = analysis.curvature_bound(loss, slope, curvature)
    # The distance t solves loss + slope t + C t^2 / 2 = 0.
    at_reach = loss + slope * reach + curvature * reach**2 / 2
    np.testing.assert_allclose(at_reach[[0, 1, 3]], 0, atol=1e-12)
    assert reach[2] == 0
    for tiny in (1e-6, 1e-12, 0.0, -3.0):
        found = analysis.curvature_bound([-0.6], [2.0], tiny)
        np.testing.assert_allclose(found, 0.3, rtol=1e-6)
    with pytest.raises(ValueError, match="largest_slope is -1"):
        analysis.lipschitz_bound(loss, -1.0)


def test_violations_are_counted():
    bound, distance = [0.1, 0.5, 0.2, 0.3], [0.2, 0.4, np.inf, 0.3]
    assert analysis.violations(bound, distance) == 0.25
    with pytest.raises(ValueError, match="shapes"):
        analysis.violations([0.1], distance)


def network(weight, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weight["a"]) @ weight["b"]


def test_regularity_is_that_of_dense_derivatives_and_rises_with_the_ball():
    with jax.enable_x64(True):
        first, second = jax.random.split(jax.random.key(0))
        weight = {
            "a": jax.random.normal(first, (6, 8), jnp.float64),
            "b": jax.random.normal(second, (8, 4), jnp.float64),
        }
        x = np.asarray(jax.random.uniform(jax.random.key(1), (5, 2, 3), jnp.float64))
        labels = np.arange(5) % 4
        measure = functools.partial(
            analysis.loss_regularity,
            jax.tree_util.Partial(network, weight),
            x,
            labels,
            batch_size=2,
            key=jax.random.key(2),
        )
        found = measure()

        def one(z, label):
            logits = network(weight, z[None])
            return analysis.log_sum_exp_margin(logits, label[None])[0]

        value, slope, bend = jax.jit(
            lambda x, y: (
                jax.vmap(one)(x, y),
                jax.vmap(jax.grad(one))(x, y),
                jax.vmap(jax.hessian(one))(x, y),
            )
        )(x, labels)
        eigenvalues = np.linalg.eigvalsh(np.asarray(bend).reshape(5, 6, 6))
        np.testing.assert_allclose(found.loss, value)
        slopes = np.linalg.norm(np.asarray(slope).reshape(5, 6), axis=1)
        np.testing.assert_allclose(found.gradient_norm, slopes)
        np.testing.assert_allclose(found.curvature, eigenvalues[:, -1], atol=1e-10)
        largest = np.abs(eigenvalues).max(axis=1)
        np.testing.assert_allclose(found.absolute_curvature, largest, atol=1e-10)
        assert np.all(found.curvature_error < 1e-10)
        around = measure(radius=0.3, num_samples=8)
        assert np.all(around.gradient_norm >= found.gradient_norm)
        assert np.all(around.absolute_curvature >= found.absolute_curvature)
        assert np.any(around.gradient_norm > found.gradient_norm + 1e-3)
        with pytest.raises(ValueError, match=r"radius is 0.3 and num_samples 1"):
            measure(radius=0.3)


def test_the_label_and_its_rival_decide_as_the_top_k_do():
    logits = jax.random.normal(jax.random.key(0), (200, 7))
    labels = jnp.arange(200) % 7
    ranks = np.argsort(-np.asarray(logits), axis=1)
    for k in (1, 3, 6):
        pair = np.asarray(analysis.label_and_rival(logits, labels, k=k))
        among = (ranks[:, :k] == np.asarray(labels)[:, None]).any(axis=1)
        np.testing.assert_array_equal(pair.argmax(axis=1) == 0, among)
        assert 0 < among.mean() < 1
    with pytest.raises(ValueError, match="k is 7"):
        analysis.label_and_rival(logits, labels, k=7)


def linear(weight, x):
    z = x.reshape(len(x), -1) @ weight
    return jnp.stack([z, jnp.zeros_like(z)], axis=1)


def test_bounds_of_a_linear_network_are_those_in_closed_form():
    with jax.enable_x64(True):
        weight = np.asarray([3.0, -1.0, 0.5, 2.0])
        # Logits lie near the boundary, or where probabilities are nearly 0 and 1.
        logit = np.asarray([1e-3, 0.5, 2.0, 8.0])
        x = (logit / (weight @ weight))[:, None] * weight
        found = analysis.loss_regularity(
            jax.tree_util.Partial(linear, weight),
            x.reshape(4, 2, 2),
            np.zeros(4, np.int64),
            loss=analysis.probability_margin,
            p=np.inf,
            num_steps=0,
            key=jax.random.key(0),
        )
    # The margin is -tanh(z / 2), and falls along w by sech(z / 2)^2 / 2.
    np.testing.assert_allclose(found.loss, -np.tanh(logit / 2))
    length = np.abs(weight).sum()
    slope = length / 2 / np.cosh(logit / 2) ** 2
    np.testing.assert_allclose(found.gradient_norm, slope)
    assert np.all(np.isnan(found.curvature))
    distance = logit / length
    bound = analysis.lipschitz_bound(found.loss, found.gradient_norm.max())
    assert analysis.violations(bound, distance) == 0
    np.testing.assert_allclose(bound[0], distance[0], rtol=1e-5)
    # The slope at images far from the boundary is no bound of that near it.
    far = analysis.lipschitz_bound(found.loss, found.gradient_norm[2])
    assert analysis.violations(far, distance) == 0.75


def test_a_loss_of_the_callers_may_take_other_targets():
    def squares(logits, targets):
        return (logits[:, 0] - targets) ** 2

    weight = np.asarray([3.0, -1.0, 0.5, 2.0], np.float32)
    x = np.random.default_rng(0).uniform(size=(4, 2, 2)).astype(np.float32)
    targets = np.asarray([0.5, -2.0, 7.0, 100.0], np.float32)
    found = analysis.loss_regularity(
        jax.tree_util.Partial(linear, weight),
        x,
        targets,
        loss=squares,
        num_steps=0,
        key=jax.random.key(0),
    )
    apart = x.reshape(4, 4) @ weight - targets
    np.testing.assert_allclose(found.loss, apart**2, rtol=1e-5)
    slope = 2 * np.abs(apart) * np.linalg.norm(weight)
    np.testing.assert_allclose(found.gradient_norm, slope, rtol=1e-5)
