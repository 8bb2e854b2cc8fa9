"""Cards of evaluations have the numbers of the attack, and name the deviations."""

import json
import math

import jax
import numpy as np
import pytest

from opnorm import attacks, reports
from opnorm.reports import card as card_file

SHAPE = (4, 4, 3)


def two_classes(weights, x):
    z = x.reshape(len(x), -1) @ weights
    return jax.numpy.stack([z, -z], axis=1)


def members(p, num_steps, num_queries, channels):
    """Stands for AutoAttack, whose programs take long to compile."""

    def make(epsilon):
        noise = attacks.uniform_noise(p=p, epsilon=epsilon)
        return attacks.first_success([noise, attacks.fgm(p=p, epsilon=epsilon)])

    return make


def test_the_attack_is_auto_attack():
    attack = card_file._factory(math.inf, 100, 5000, "last")(np.zeros(1))
    expected = attacks.auto_attack(p=math.inf, epsilon=0.0)
    for one, other in zip(attack.stages, expected.stages, strict=True):
        assert (one.name, one.num_steps) == (other.name, other.num_steps)


def test_the_card_has_the_exact_accuracy_of_a_linear_network(monkeypatch):
    """A linear network falls at x where ``|z| <= epsilon ||w||_1``, and FGM does it."""
    monkeypatch.setattr(card_file, "_factory", members)
    draws = np.random.default_rng(0)
    weights = draws.normal(size=math.prod(SHAPE)).astype(np.float32)
    weights -= weights.mean()
    # No image touches the box, which would shorten perturbations.
    images = draws.integers(40, 216, (16, *SHAPE)).astype(np.uint8)
    z = (images / 255).reshape(16, -1) @ weights
    labels = np.where(np.arange(16) < 14, z < 0, z > 0).astype(np.int32)
    f = jax.tree_util.Partial(two_classes, weights)
    card = reports.standard_card(
        f,
        images,
        labels,
        num_steps=4,
        num_queries=3,
        network="linear",
        data="drawn",
        batch_size=16,
    )
    right = np.arange(16) < 14
    robust = right & (np.abs(z) > 8 / 255 * np.abs(weights).sum())
    assert 0 < robust.sum() < 14
    assert card["clean_accuracy"] == 14 / 16
    assert card["robust_accuracy"] == robust.mean()
    assert card["robust_standard_error"] == pytest.approx(
        robust.std(ddof=1) / 4, rel=1e-6
    )
    assert list(card["after"].values())[-1] == robust.mean()
    assert len(card["after"]) == 2
    assert card["epsilon"] == 8 / 255
    assert card["environment"]["jax"] == jax.__version__
    words = " ".join(card["deviations"])
    for part in ("16 examples", "4 steps", "3 queries"):
        assert part in words
    assert "epsilon" not in words
    # A card that was written and read again gives the same text.
    text = reports.card_text(json.loads(json.dumps(card)))
    assert (
        f"**AutoAttack, Linf, epsilon = 8/255** | **{100 * robust.mean():.2f}" in text
    )
    assert f"jax {jax.__version__}" in text
    assert card["environment"]["device"] in text


def test_only_the_standard_evaluation_has_no_deviations():
    given = {
        "network": "n",
        "data": "d",
        "examples": 10_000,
        "norm": "L2",
        "epsilon": 0.5,
        "clean": (0.9, 0.003),
        "robust": (0.6, 0.005),
        "after": {},
        "seed": 0,
        "seconds": 1.0,
    }
    card = reports.make_card(**given)
    assert card["deviations"] == []
    assert "standard evaluation: none." in reports.card_text(card)
    changed = reports.make_card(**{**given, "norm": "Linf"})
    assert changed["deviations"] == ["epsilon is 0.5; the standard is 8/255"]
    with pytest.raises(ValueError, match="norm is 'L1'; it may be Linf, L2"):
        reports.make_card(**{**given, "norm": "L1"})
