"""A step means the same on any number of devices, and however a batch is cut."""

import dataclasses

import jax
import numpy as np
import pytest

from opnorm import training

TINY = training.Config(
    model="mlp", width=8, epochs=2, batch_size=16, train_examples=48, seed=3
)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


METHODS = [
    {"method": "standard"},
    {"method": "adversarial", "num_steps": 2},
    {"method": "adversarial_only", "num_steps": 2, "p": float("inf"), "epsilon": 0.02},
    {"method": "data_dependent_snr"},
    {"method": "data_dependent_snr", "variant": "derivative"},
    {"method": "data_dependent_snr", "search": "dense"},
    {"method": "data_dependent_snr", "search": "iterative", "num_steps": 2},
    {"method": "data_dependent_onr", "p": float("inf"), "q": 2.0, "epsilon": 0.02},
    {"method": "data_dependent_onr", "p": float("inf"), "search": "iterative"},
    {"method": "global_snr", "weight": 0.01, "num_steps": 2},
    {"method": "interpolated", "num_steps": 2, "mix": 0.25},
    {"method": "gradient_regularization", "p": float("inf"), "divide_by_size": True},
]


@pytest.mark.parametrize(
    "options", METHODS, ids=lambda o: "-".join(map(str, o.values()))
)
def test_one_two_and_eight_devices_train_alike(options, train_set):
    # Adam would turn rounding of gradients near zero into whole steps.
    config = dataclasses.replace(
        TINY, epochs=1, optimizer="sgd", learning_rate=0.05, **options
    )
    results = [
        training.train(
            config,
            train_set=train_set,
            mesh=training.data_mesh(jax.devices()[:count]),
            parameter_sharding=sharding,
            show_progress=False,
        )
        for count, sharding in ((1, "replicated"), (2, "replicated"), (8, "fsdp"))
    ]
    assert results[0].step == 3
    for other in results[1:]:
        np.testing.assert_allclose(
            other.metrics["loss"], results[0].metrics["loss"], rtol=1e-5
        )
        for a, b in zip(leaves(results[0].params), leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_sharded_parameters_lie_in_parts_and_come_back_whole(
    train_set, tmp_path, interrupt
):
    from opnorm.training import step

    mesh = training.data_mesh()
    shapes = {
        "small": jax.ShapeDtypeStruct((8, 16), np.float32),
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
        "odd": jax.ShapeDtypeStruct((1025, 3), np.float32),
    }
    state = step.TrainState(
        step=shapes["small"],
        params=shapes,
        batch_stats=shapes,
        optimizer_state=shapes,
        method_state=shapes,
        key=shapes["small"],
        skipped_updates=shapes["small"],
        skipped_in_a_row=shapes["small"],
    )
    found = training.state_shardings(state, mesh, "fsdp")
    for tree in (found.params, found.optimizer_state):
        assert tree["kernel"].shard_shape((3, 3, 64, 128)) == (3, 3, 64, 16)
        assert tree["small"].is_fully_replicated and tree["odd"].is_fully_replicated
    assert found.batch_stats["kernel"].is_fully_replicated
    with pytest.raises(ValueError, match="parameter_sharding is 'zero'"):
        training.state_shardings(state, mesh, "zero")
    # A run goes on under another sharding: a checkpoint holds whole arrays.
    results = [
        training.train(
            dataclasses.replace(TINY, epochs=2),
            directory=directory,
            train_set=source,
            parameter_sharding=sharding,
            checkpoint_every=2,
            show_progress=False,
        )
        for directory, source, sharding in _resumed_with(tmp_path, train_set, interrupt)
    ]
    for a, b in zip(leaves(results[0].params), leaves(results[1].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert b.shape == a.shape


def _resumed_with(tmp_path, train_set, interrupt):
    """A whole run, and one that was interrupted under fsdp."""
    interrupted = tmp_path / "fsdp"
    with pytest.raises(KeyboardInterrupt):
        training.train(
            dataclasses.replace(TINY, epochs=2),
            directory=interrupted,
            train_set=interrupt(train_set, after=4),
            parameter_sharding="fsdp",
            checkpoint_every=2,
            show_progress=False,
        )
    return [
        (None, train_set, "replicated"),
        (interrupted, train_set, "replicated"),
    ]


@pytest.mark.parametrize("method", ["adversarial", "standard"])
def test_accumulated_parts_are_the_whole_batch(method, train_set):
    # The MLP has no BatchNorm; attacks start at the pictures, so nothing is drawn.
    options = {"num_steps": 2, "random_start": False} if method != "standard" else {}
    config = dataclasses.replace(
        TINY,
        epochs=1,
        method=method,
        augment=False,
        optimizer="sgd",
        learning_rate=0.05,
        **options,
    )
    results = [
        training.train(
            dataclasses.replace(config, accumulation_steps=parts),
            train_set=train_set,
            mesh=training.data_mesh(jax.devices()[:count]),
            show_progress=False,
        )
        for parts, count in ((1, 1), (4, 1), (2, 8))
    ]
    for other in results[1:]:
        np.testing.assert_allclose(
            other.metrics["loss"], results[0].metrics["loss"], rtol=1e-5
        )
        for a, b in zip(leaves(results[0].params), leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
