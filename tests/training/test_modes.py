"""Dropout is off in inference, and the step decides it in training."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from opnorm import training
from opnorm.training import modes

# Two steps in each epoch.
CONFIG = training.Config(
    model="alexnet",
    width=3,
    dropout=0.5,
    normalization="whitened",
    image_size=12,
    train_examples=32,
    epochs=2,
    batch_size=16,
    augment=False,
)


def test_an_interrupted_run_drops_the_same_entries(tmp_path, interrupt):
    train_set = training.load_train_set(CONFIG)
    options = {"show_progress": False, "checkpoint_every": 1, "log_every": 1}
    whole = training.train(CONFIG, train_set=train_set, show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        training.train(
            CONFIG,
            directory=tmp_path,
            train_set=interrupt(train_set, after=3),
            **options,
        )
    resumed = training.train(CONFIG, directory=tmp_path, train_set=train_set, **options)
    equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    equal(whole.network.variables, resumed.network.variables)
    equal(whole.network.variables, training.load_run(tmp_path).network.variables)


def test_the_key_decides_what_is_dropped_in_training_alone():
    program = training.make_objective(CONFIG, 10, (12, 12, 3))
    found = modes.create(program.module)
    params, stats = jax.eval_shape(program.init, jax.random.key(0))
    x, key = np.zeros((4, 12, 12, 3), np.float32), jax.random.key(1)

    def drawn(train, **options):
        module = program.module.clone(**options)
        made = modes.create(module)
        if not train:
            return str(jax.make_jaxpr(made.infer)(params, stats, x))
        return str(jax.make_jaxpr(made.train)(params, stats, x, key))

    assert "random_bits" in drawn(train=True)
    assert "random_bits" not in drawn(train=False)
    # Networks without dropout take no random numbers from the step.
    assert "random_" not in drawn(train=True, dropout=0.0)

    params, stats = program.init(jax.random.key(0))
    x = np.random.default_rng(0).uniform(0, 1, (4, 12, 12, 3)).astype(np.float32)

    @jax.jit
    def logits(params, stats, x):
        keys = jax.random.split(key)
        return [found.train(params, stats, x, k)[0] for k in (keys[0], *keys)]

    first, again, other = logits(params, stats, x)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_dropout_enters_no_difference_of_passes():
    for options in (
        {"method": "data_dependent_snr"},
        {"method": "interpolated"},
        {"method": "gradient_regularization"},
    ):
        config = training.Config(model="alexnet", dropout=0.2, **options)
        with pytest.raises(ValueError, match=r"dropout is 0.2; .*compares two passes"):
            training.validate(config)
    training.validate(
        training.Config(
            model="alexnet",
            dropout=0.2,
            method="data_dependent_snr",
            variant="derivative",
        )
    )
    with pytest.raises(ValueError, match=r"dropout is 0.2, which mlp does not have"):
        training.validate(training.Config(model="mlp", dropout=0.2))
    with pytest.raises(ValueError, match=r"dropout is 1.5; it must be in"):
        training.validate(dataclasses.replace(CONFIG, dropout=1.5))
