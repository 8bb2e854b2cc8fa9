"""A step means the same on any number of devices, and however a batch is cut."""

import dataclasses

import jax
import numpy as np
import pytest

from opnorm import training

TINY = training.Config(
    model="mlp",
    width=8,
    epochs=1,
    batch_size=16,
    train_examples=48,
    seed=3,
    # Half of what a step takes to compile, and the same in all of them.
    augment=False,
    # Adam would turn rounding of gradients near zero into whole steps.
    optimizer="sgd",
    learning_rate=0.05,
)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


METHODS = [
    {"method": "standard", "augment": True},
    {"method": "adversarial", "num_steps": 2},
    {"method": "adversarial_only", "num_steps": 2, "p": float("inf"), "epsilon": 0.02},
    {"method": "data_dependent_snr"},
    {"method": "data_dependent_snr", "variant": "derivative", "search": "iterative"},
    {"method": "data_dependent_snr", "search": "dense"},
    {"method": "data_dependent_onr", "p": float("inf"), "q": 2.0, "epsilon": 0.02},
    {"method": "data_dependent_onr", "p": float("inf"), "search": "iterative"},
    {"method": "global_snr", "weight": 0.01, "num_steps": 2},
    {"method": "interpolated", "num_steps": 2, "mix": 0.25},
    # A finite difference divides rounding by its step: with the weight 1 losses differ
    # by more than 1e-5 for some seeds.
    {
        "method": "gradient_regularization",
        "p": float("inf"),
        "divide_by_size": True,
        "weight": 0.1,
    },
]


def train(config, train_set, devices, **options):
    mesh = training.data_mesh(jax.devices()[:devices])
    return training.train(
        config, train_set=train_set, mesh=mesh, show_progress=False, **options
    )


def assert_alike(first, second, atol):
    np.testing.assert_allclose(second.metrics["loss"], first.metrics["loss"], rtol=1e-5)
    for a, b in zip(leaves(first.params), leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize(
    "options", METHODS, ids=lambda o: "-".join(map(str, o.values()))
)
def test_one_two_and_eight_devices_train_alike(options, train_set):
    config = dataclasses.replace(TINY, **options)
    one = train(config, train_set, 1)
    assert one.step == 3
    for devices, sharding in ((2, "replicated"), (8, "fsdp")):
        found = train(config, train_set, devices, parameter_sharding=sharding)
        assert_alike(one, found, atol=2e-5)


def test_sharded_parameters_lie_in_parts_and_come_back_whole(
    train_set, tmp_path, interrupt
):
    mesh = training.data_mesh()
    shapes = {
        "small": jax.ShapeDtypeStruct((8, 16), np.float32),
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
        "odd": jax.ShapeDtypeStruct((1025, 3), np.float32),
    }
    state = training.TrainState(
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
        assert tree["small"].is_fully_replicated
        assert tree["odd"].is_fully_replicated
    assert found.batch_stats["kernel"].is_fully_replicated
    with pytest.raises(ValueError, match="parameter_sharding is 'zero'"):
        training.state_shardings(state, mesh, "zero")
    # A run goes on under another sharding: a checkpoint holds whole arrays.
    config = dataclasses.replace(TINY, epochs=2, optimizer="adam", learning_rate=2e-3)
    saved = {"directory": tmp_path, "checkpoint_every": 2}
    interrupted = interrupt(train_set, after=4)
    with pytest.raises(KeyboardInterrupt):
        train(config, interrupted, 8, parameter_sharding="fsdp", **saved)
    resumed = train(config, train_set, 8, **saved)
    whole = train(config, train_set, 8)
    for a, b in zip(leaves(whole.params), leaves(resumed.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert b.shape == a.shape


def test_accumulated_parts_are_the_whole_batch(train_set):
    # The MLP has no BatchNorm; attacks start at the images, so nothing is drawn.
    config = dataclasses.replace(
        TINY, method="adversarial", num_steps=2, random_start=False
    )
    whole = train(config, train_set, 1)
    for parts, count in ((4, 1), (2, 8)):
        cut = dataclasses.replace(config, accumulation_steps=parts)
        assert_alike(whole, train(cut, train_set, count), atol=1e-5)
