"""Accuracies under FGSM and PGD in training: their values, times and warning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import data, runs, training
from opnorm.training import plan
from opnorm.training.robust_check import RobustCheck

ONE_STEP = training.Config(
    model="mlp",
    width=8,
    epochs=3,
    batch_size=16,
    method="adversarial_only",
    p=float("inf"),
    epsilon=8 / 255,
    num_steps=1,
    random_start=False,
    augment=False,
)
EPSILON = ONE_STEP.epsilon


def trap(start, x):
    """Logits with a valley half-way to where FGSM goes from ``start``.

    Elsewhere, the first class wins.
    """
    mean = jnp.mean(x, axis=(1, 2, 3))
    valley = jnp.abs(mean - start - EPSILON / 2) - EPSILON / 4
    margin = jnp.where(mean > 0.6, 1.0, valley)
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)


def examples(values, labels):
    images = np.tile(np.uint8(values)[:, None, None, None], (1, 8, 8, 3))
    return data.Dataset(images, np.int32(labels), ("a", "b"), "x", "x")


def test_a_network_that_resists_fgsm_alone_is_noticed_once(caplog):
    # 32 in the trap, 16 that no attack moves, 16 that are wrong from the beginning.
    train_set = examples([102] * 32 + [204] * 32, [0] * 48 + [1] * 16)
    check = RobustCheck(ONE_STEP, plan.make(ONE_STEP, 64), train_set, None)
    network = jax.tree_util.Partial(trap, jnp.float32(102 / 255))
    found = [check.measure(network, step) for step in (4, 8)]
    assert found == [{"fgsm_accuracy": 0.75, "pgd_accuracy": 0.25}] * 2
    (message,) = (r.getMessage() for r in caplog.records)
    assert "catastrophic overfitting at step 4, epoch 1: of 64 training" in message
    assert "75 % withstand FGSM and 25 % PGD" in message
    # A valley out of reach is no trap.
    caplog.clear()
    other = RobustCheck(ONE_STEP, plan.make(ONE_STEP, 64), train_set, None)
    far = jax.tree_util.Partial(trap, jnp.float32(102 / 255 + EPSILON))
    assert other.measure(far, 4) == {"fgsm_accuracy": 0.75, "pgd_accuracy": 0.75}
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "every", "steps"),
    [
        ({}, None, [3, 6, 9]),
        ({}, 2, [6, 9]),
        ({}, 0, []),
        ({"num_steps": 2}, None, []),
        ({"num_steps": 2}, 3, [9]),
        ({"method": "adversarial"}, None, [3, 6, 9]),
        ({"method": "global_snr", "random_start": True}, None, []),
    ],
)
def test_one_step_is_checked_after_every_epoch_and_others_on_request(
    change, every, steps, train_set
):
    config = dataclasses.replace(ONE_STEP, **change)
    check = RobustCheck(config, plan.make(config, 48), train_set, every)
    assert [step for step in range(1, 10) if check.is_due(step)] == steps


def test_a_run_has_both_accuracies_and_ends_as_without_them(train_set, tmp_path):
    options = {"train_set": train_set, "show_progress": False, "log_every": 4}
    options["mesh"] = training.data_mesh(jax.devices()[:1])
    checked = training.train(ONE_STEP, directory=tmp_path, **options)
    lines = runs.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9]
    with_both = [line["step"] for line in lines if "pgd_accuracy" in line]
    assert with_both == [3, 6, 9]
    last = lines[-1]
    assert 0 <= last["pgd_accuracy"] <= last["fgsm_accuracy"] <= 1
    assert checked.metrics["fgsm_accuracy"] == last["fgsm_accuracy"]
    plain = training.train(ONE_STEP, robust_check_every=0, **options)
    assert "pgd_accuracy" not in plain.metrics
    jax.tree.map(np.testing.assert_array_equal, checked.params, plain.params)
    with pytest.raises(ValueError, match=r"robust_check_every is -1; it must be"):
        training.train(ONE_STEP, robust_check_every=-1, **options)
