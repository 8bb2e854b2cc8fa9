"""Margins, gains and slopes against cases that are computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opnorm import analysis, attacks, operators

LOGITS = np.array(
    [[3.0, 1.0, -2.0], [1.0, 1.5, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.5]], np.float32
)
LABELS = np.array([0, 0, 1, 2])
MARGINS = np.array([2.0, -0.5, 0.0, 0.5], np.float32)


def test_margin_is_the_label_over_the_best_of_the_others():
    found = analysis.margin(LOGITS, LABELS)
    np.testing.assert_array_equal(found, MARGINS)
    np.testing.assert_array_equal(found, -attacks.margin(LOGITS, LABELS))
    assert analysis.margin(jnp.asarray(LOGITS, jnp.bfloat16), LABELS).dtype == "float32"
    with pytest.raises(ValueError, match=r"labels has shape .2,."):
        analysis.margin(LOGITS, LABELS[:2])
    assert analysis.margin(LOGITS[:0], LABELS[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "labels has values from 1 to 3; the network has 3 classes"),
        (LABELS - 1, "labels has values from -1 to 1"),
        (LABELS.astype(np.float32), "labels has shape .4,. and dtype float32"),
        (np.eye(3, dtype=int)[LABELS], "labels has shape .4, 3. and dtype int64"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_every_margin(labels, message):
    for margin in (
        analysis.margin,
        analysis.probability_margin,
        analysis.log_sum_exp_margin,
        analysis.soft_margin,
        lambda logits, labels: analysis.top_k_margin(logits, labels, k=2),
        analysis.label_and_rival,
        lambda x, labels: analysis.gradient_norms(lambda x: x, x, labels),
    ):
        with pytest.raises(ValueError, match=message):
            margin(LOGITS, labels)


def test_ramp_loss_falls_from_one_at_zero_to_none_at_gamma():
    margins = np.array([-3.0, 0.0, 0.5, 1.0, 2.0, 5.0], np.float32)
    found = jax.jit(analysis.ramp_loss)(margins, 2.0)
    np.testing.assert_array_equal(found, [1, 1, 0.75, 0.5, 0, 0])
    for gamma in (0.0, -1.0):
        with pytest.raises(ValueError, match="gamma is"):
            analysis.ramp_loss(margins, gamma)


def test_margin_loss_counts_margins_up_to_gamma_ties_included():
    assert analysis.margin_loss(MARGINS) == 0.5
    assert analysis.margin_loss(MARGINS, 0.5) == 0.75
    assert analysis.margin_loss(MARGINS, 2.0) == 1.0
    gammas = np.array([[0.0], [0.4], [0.5], [3.0]])
    found = jax.jit(analysis.margin_loss)(MARGINS, gammas)
    np.testing.assert_array_equal(found, [0.5, 0.5, 0.75, 1.0])
    assert analysis.margin_loss(np.array([np.nan, 1.0], np.float32)) == 0.5
    with pytest.raises(ValueError, match="gamma is -1"):
        analysis.margin_loss(MARGINS, -1.0)


def test_ramp_risk_lies_between_the_error_and_the_margin_loss():
    margins = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for gamma in (0.1, 1.0, 10.0):
        risk = np.mean(analysis.ramp_loss(margins, gamma))
        assert analysis.margin_loss(margins) <= risk
        assert risk <= analysis.margin_loss(margins, gamma)


def test_gain_is_that_of_the_layers_behind_the_normalisation():
    weight = np.diag([3.0, 1.0]).astype(np.float32)
    pixels = np.array([[[0.75, 0.5]], [[0.5, 0.25]], [[0.5, 0.5]]], np.float32)

    def normalize(x):
        return (x - 0.5) / 0.25

    def f(x):
        return normalize(x).reshape(len(x), -1) @ weight

    found = analysis.output_gain(f, pixels, normalize=normalize)
    np.testing.assert_allclose(found[:2], [3, 1], rtol=1e-6)
    assert not np.isfinite(found[2])
    lengths = np.sqrt([0.8125, 0.3125, 0.5])
    np.testing.assert_allclose(analysis.output_gain(f, pixels), [3, 1, 0] / lengths)


@pytest.mark.parametrize(("p", "dual"), [(2.0, 2), (np.inf, 1), (1.0, np.inf)])
def test_gradient_norms_are_those_of_optaxs_cross_entropy(p, dual):
    keys = jax.random.split(jax.random.key(0), 3)
    weight, x = (
        jax.random.normal(keys[0], (6, 4)),
        jax.random.normal(keys[1], (5, 2, 3)),
    )
    labels = jnp.arange(5) % 4

    def f(x):
        return jnp.tanh(x.reshape(len(x), -1)) @ weight

    def one(x, label):
        return optax.softmax_cross_entropy_with_integer_labels(f(x[None])[0], label)

    rows = np.asarray(jax.vmap(jax.grad(one))(x, labels)).reshape(5, -1)
    expected = np.linalg.norm(rows, dual, axis=1)
    found = analysis.gradient_norms(f, x, labels, p=p)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradient_norm_of_a_linear_loss_is_that_of_its_weights():
    weight = np.array([[1.0, -2.0], [2.0, 0.0]], np.float32)
    found = analysis.gradient_norms(
        lambda x: x @ weight,
        np.ones((3, 2), np.float32),
        np.array([0, 1, 0]),
        loss=attacks.margin,
    )
    np.testing.assert_allclose(found, [np.sqrt(13)] * 3, rtol=1e-6)


def test_the_unit_of_the_released_code_is_its_formula():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    first, last = (rng.normal(size=(9, 5)), rng.normal(size=(5, 3)))
    layers = [
        operators.Layer(kernel, "conv", "convolution", (6, 5, 2)),
        operators.Layer(first.astype(np.float32), "dense1", "dense", (9,)),
        operators.Layer(last.astype(np.float32), "logits", "dense", (5,)),
    ]
    a, b, c = norms = (1.5, 0.7, 2.5)
    squares = [(kernel**2).sum() * 6 * 5 * 2 / 4, (first**2).sum(), (last**2).sum()]
    total = sum(square / norm**2 for square, norm in zip(squares, norms, strict=True))
    clean = analysis.log_released_unit(layers, norms, attacked=False)
    assert np.exp(clean) == pytest.approx(a * b * c * np.sqrt(total), rel=1e-6)
    attacked = analysis.log_released_unit(layers, norms, attacked=True)
    # The code counts the empty product twice and leaves the whole product out.
    assert np.exp(attacked - clean) == pytest.approx(1 + 1 + a + a * b)
    assert analysis.log_released_unit(layers, (1.0, 0.0, 1.0), attacked=True) == -np.inf
    with pytest.raises(ValueError, match=r"norms has shape \(2,\); it must be \(3,\)"):
        analysis.log_released_unit(layers, norms[:2], attacked=True)
