"""Outcomes and their gaps against SciPy in float64."""

import jax
import numpy as np
import pytest
from scipy import special

from opnorm import analysis

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 4, (6, 4)).astype(np.float32)
IMAGES = RNG.uniform(size=(11, 3, 2)).astype(np.float32)
LABELS = RNG.integers(0, 4, 11)


def linear(parameters, x):
    return x.reshape(len(x), -1) @ parameters["weight"] + parameters["bias"]


def network(bias=0.0):
    added = np.broadcast_to(np.float32(bias), 4)
    return jax.tree_util.Partial(linear, {"weight": WEIGHT, "bias": added})


def exact(mask=None):
    """Loss, margin, probability and correctness in float64."""
    logits = IMAGES.reshape(11, 6).astype(np.float64) @ WEIGHT
    if mask is not None:
        logits[:, mask] = -np.inf
    logs = special.log_softmax(logits, axis=1)
    chosen = np.arange(11), LABELS
    others = logits.copy()
    others[chosen] = -np.inf
    gap = logits[chosen] - others.max(axis=1)
    return -logs[chosen], gap, np.exp(logs[chosen]), logits.argmax(axis=1) == LABELS


@pytest.mark.parametrize("mask", [None, 2])
def test_outcomes_are_those_of_float64(mask) -> None:
    bias = np.where(np.arange(4) == mask, -np.inf, 0)
    found = analysis.evaluate_outcomes(network(bias), IMAGES, LABELS, batch_size=4)
    for value, expected in zip(found, exact(mask), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
    assert (LABELS == 2).any()
    assert found.correct.dtype == bool


def test_outcomes_that_are_not_numbers_are_not_correct() -> None:
    found = analysis.evaluate_outcomes(network(np.nan), IMAGES, LABELS, batch_size=4)
    assert np.isnan(found.loss).all()
    assert not found.correct.any()


def test_gaps_are_differences_of_means() -> None:
    loss, _, _, correct = exact()
    parts = [
        analysis.Outcomes(*(v[s] for v in exact())) for s in np.split(range(11), [5])
    ]
    gaps = analysis.generalization_gaps(*parts)
    for gap, values in ((gaps.loss, loss), (gaps.error, 1.0 - correct)):
        train, test = values[:5], values[5:]
        squared = train.var(ddof=1) / 5 + test.var(ddof=1) / 6
        expected = train.mean(), test.mean(), test.mean() - train.mean()
        np.testing.assert_allclose(gap, [*expected, squared**0.5], rtol=1e-12)
    one = analysis.Outcomes(*(value[:1] for value in exact()))
    assert np.isnan(analysis.generalization_gaps(one, parts[1]).loss.standard_error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least 1"),
        ({"labels": np.full(11, 4)}, "labels"),
        ({"images": IMAGES + 1}, "images"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_named(changes, message) -> None:
    given = {"images": IMAGES, "labels": LABELS, "batch_size": 4, **changes}
    with pytest.raises(ValueError, match=message):
        analysis.evaluate_outcomes(network(), **given)
