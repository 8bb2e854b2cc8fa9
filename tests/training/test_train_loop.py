"""Runs resume exactly; methods and configurations are checked."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from opnorm import data, regularizers, runs, training
from opnorm.runs import checkpoints

TINY = training.Config(
    model="mlp",
    width=8,
    epochs=2,
    batch_size=16,
    train_examples=48,
    seed=3,
    # Half of what a step takes to compile.
    augment=False,
)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_identical(first, second):
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(train_set, tmp_path_factory):
    """A directory, and the run in it."""
    directory = tmp_path_factory.mktemp("finished")
    options = {"train_set": train_set, "show_progress": False}
    return directory, training.train(TINY, directory=directory, **options)


def test_a_run_of_an_earlier_version_goes_on(finished, train_set, tmp_path, interrupt):
    with pytest.raises(KeyboardInterrupt):
        training.train(
            TINY,
            directory=tmp_path,
            train_set=interrupt(train_set, after=4),
            checkpoint_every=2,
            show_progress=False,
        )
    # As it was before there were such flags.
    file = tmp_path / "flags.json"
    stored = json.loads(file.read_text())
    for name in ("padding", "activation", "accumulation_steps"):
        del stored["flags"][name]
    file.write_text(json.dumps(stored))
    again = training.train(
        TINY, directory=tmp_path, train_set=train_set, show_progress=False
    )
    assert_identical(finished[1].params, again.params)


def test_a_run_resumed_from_a_checkpoint_ends_bit_identical(
    tmp_path, train_set, interrupt
):
    config = dataclasses.replace(TINY, method="data_dependent_snr", augment=True)
    whole = training.train(config, train_set=train_set, show_progress=False)
    first = tmp_path / "run"
    interrupted = interrupt(train_set, after=4)
    with pytest.raises(KeyboardInterrupt):
        training.train(
            config,
            directory=first,
            train_set=interrupted,
            checkpoint_every=2,
            log_every=1,
            show_progress=False,
        )
    resumed = training.train(
        config,
        directory=first,
        train_set=train_set,
        checkpoint_every=2,
        log_every=1,
        show_progress=False,
    )
    assert_identical(whole.params, resumed.params)
    assert_identical(whole.batch_stats, resumed.batch_stats)
    steps = [line["step"] for line in runs.read_metrics(first)]
    assert steps == list(range(1, 7))


def test_a_finished_run_is_returned_without_training(finished, train_set, interrupt):
    directory, first = finished
    again = training.train(
        TINY,
        directory=directory,
        train_set=interrupt(train_set, after=0),
        show_progress=False,
    )
    assert_identical(first.params, again.params)


def test_other_data_are_refused(finished, train_set):
    turned = dataclasses.replace(train_set, images=train_set.images[::-1])
    for other, message in ((turned, "other images"), (train_set.slice(0, 32), "32")):
        with pytest.raises(ValueError, match=f"other data.*{message}"):
            training.train(TINY, directory=finished[0], train_set=other)


def test_checkpoints_that_are_gone_are_missed(
    finished, train_set, tmp_path, interrupt, caplog
):
    lost = tmp_path / "lost"
    shutil.copytree(finished[0], lost)
    shutil.rmtree(lost / "checkpoints")
    before = (lost / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="metrics up to step 6, but its checkpoints"):
        training.train(TINY, directory=lost, train_set=train_set)
    assert (lost / "metrics.jsonl").read_text() == before
    # A run that was ended before its first checkpoint begins again.
    begun = {"directory": tmp_path / "begun", "log_every": 1, "show_progress": False}
    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, train_set=interrupt(train_set, after=2), **begun)
    again = training.train(TINY, train_set=train_set, **begun)
    assert "metrics up to step 2, but no checkpoint" in caplog.text
    assert_identical(finished[1].params, again.params)
    steps = [line["step"] for line in runs.read_metrics(tmp_path / "begun")]
    assert steps == list(range(1, 7))


def test_added_epochs_are_those_of_a_run_that_had_them_at_once(train_set, tmp_path):
    config = dataclasses.replace(TINY, schedule="step", milestones="1", warmup_epochs=1)
    longer = dataclasses.replace(config, epochs=3, milestones="1,2")
    options = {"train_set": train_set, "show_progress": False}
    whole = training.train(longer, directory=tmp_path / "whole", **options)
    training.train(config, directory=tmp_path / "added", **options)
    added = training.train(longer, directory=tmp_path / "added", **options)
    assert added.step == whole.step == 9
    assert_identical(whole.params, added.params)
    # Optimiser, method and random numbers, too.
    states = [
        checkpoints._read(tmp_path / run / "checkpoints" / "9")[0]["leaves"]
        for run in ("whole", "added")
    ]
    assert states[0] == states[1]
    assert training.load_run(tmp_path / "added").config == longer


def test_a_directory_of_another_run_is_refused(finished, train_set):
    other = dataclasses.replace(TINY, learning_rate=0.5)
    with pytest.raises(ValueError, match="learning_rate"):
        training.train(
            other, directory=finished[0], train_set=train_set, show_progress=False
        )


def test_a_run_can_start_from_another_runs_parameters(finished, train_set, tmp_path):
    directory, first = finished
    later = dataclasses.replace(TINY, init_from=str(directory))
    start = training.load_run(later.init_from).network
    program = training.make_program(later, train_set, training.data_mesh())
    begun = program.initial_state(later.seed, start)
    assert_identical(begun.params, first.params)
    # Had it not started there, it would have ended there.
    run = tmp_path / "later"
    second = training.train(
        later, directory=run, train_set=train_set, show_progress=False
    )
    stored = json.loads((run / "flags.json").read_text())["data"]
    variables = {"params": first.params, "batch_stats": first.batch_stats}
    expected = checkpoints.digest(variables)
    assert stored == data.fingerprint(train_set) | {"start": expected}
    for a, b in zip(leaves(first.params), leaves(second.params), strict=True):
        assert not np.array_equal(a, b)
    wider = dataclasses.replace(later, width=9)
    with pytest.raises(ValueError, match="init_from"):
        training.train(wider, train_set=train_set, show_progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method.*magic.*standard"),
        ({"dataset": "cifar11"}, "dataset.*cifar11"),
        ({"model": "resnet"}, "model.*resnet.*cnn7"),
        ({"epsilon": -1.0}, "epsilon.*-1"),
        ({"p": 0.5}, "p is 0.5"),
        ({"method": "data_dependent_snr", "p": 1.0}, "data_dependent_onr"),
        ({"search": "dense"}, "search.*standard"),
        ({"penalty_fraction": 0.0}, "penalty_fraction is 0"),
        ({"step_size": 1.0}, "step_size.*standard"),
        ({"mix": 0.1}, "mix is 0.1.*interpolated"),
        ({"difference_step": 0.1}, "difference_step.*gradient_regularization"),
        ({"method": "gradient_regularization", "difference_step": 0}, "difference_s"),
        ({"method": "interpolated", "mix": 1.5}, "mix is 1.5"),
        ({"method": "interpolated", "variant": "derivative"}, "variant.*derivative"),
        (
            {"method": "gradient_regularization", "compute_dtype": "bfloat16"},
            "compute_dtype is 'bfloat16'.*rounding",
        ),
        ({"compute_dtype": "float16"}, "compute_dtype is 'float16'"),
        ({"logit_activation": True}, "logit_activation is True.*resnext34"),
        ({"rematerialize": True}, "rematerialize is True.*mlp"),
        ({"activation": "tanh"}, "activation is 'tanh'.*smooth_relu"),
        ({"normalization": "mine"}, "normalization is 'mine'.*imagenet"),
        ({"random_start": False}, "random_start is False.*standard"),
        ({"padding": "circular"}, "padding is 'circular'.*reflect"),
        ({"augment": False, "cutout": 8}, "padding, cutout are 'zero', 8"),
        ({"batch_size": 20, "accumulation_steps": 3}, "accumulation_steps is 3.*20"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"seed": -1}, "seed"),
        # JAX would take it for seed 0.
        ({"seed": 2**32}, "seed is 4294967296.*at most 4294967295"),
        ({"epochs": 2**31}, "epochs is 2147483648; it must be at most"),
        ({"momentum": 1.0}, "momentum"),
        ({"schedule": "circular"}, "schedule.*circular.*cosine"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_written(
    change, message, tmp_path
):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        training.train(config, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_half_precision_leaves_parameters_and_losses_in_float32(train_set):
    config = training.Config(
        model="cnn7",
        width=2,
        compute_dtype="bfloat16",
        activation="smooth_relu",
        normalization="cifar10",
        rematerialize=True,
        padding="reflect",
        cutout=8,
        epochs=1,
        batch_size=16,
    )
    mesh = training.data_mesh(jax.devices()[:1])
    result = training.train(config, train_set=train_set, mesh=mesh, show_progress=False)
    assert result.step == 3
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert result.metrics["skipped_updates"] == 0
    for tree in (result.params, result.batch_stats):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}


def test_images_that_were_divided_by_255_are_refused(train_set):
    scaled = dataclasses.replace(train_set, images=train_set.images // 128)
    with pytest.raises(ValueError, match="no value above 1; they must be bytes"):
        training.train(TINY, train_set=scaled, show_progress=False)


def test_a_batch_that_the_devices_do_not_divide_is_refused(train_set):
    config = dataclasses.replace(TINY, batch_size=12)
    with pytest.raises(ValueError, match=r"batch_size is 12.*devices, 8"):
        training.train(config, train_set=train_set, show_progress=False)


def setup(config, train_set, examples):
    """The method's jitted loss with its arguments but for the state, and a network.

    The MLP has no BatchNorm, so both modes are one function.
    """
    objective = training.make_objective(config, 10, train_set.image_shape)
    params, stats = objective.init(jax.random.key(0))
    module, method = objective.module, objective.method
    batch = training.Batch(
        data.to_float(train_set.images[examples]), train_set.labels[examples], examples
    )
    state = method.init(params, jax.random.key(1), 48, 10)
    loss = jax.jit(method.loss)

    def step(state):
        return loss(params, stats, state, batch, jax.random.key(2))

    return step, state, batch, lambda x: module.apply({"params": params}, x)


def losses(logits, labels):
    return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]


def test_interpolation_mixes_the_terms_of_two_methods(train_set):
    config = dataclasses.replace(
        TINY, method="interpolated", mix=0.25, weight=3.0, num_steps=2
    )
    step, state, batch, f = setup(config, train_set, np.arange(16))
    value, auxiliary = step(state)
    assert not np.array_equal(auxiliary.method_state["left"], state["left"])
    terms = auxiliary.metrics
    clean = losses(f(batch.images), batch.labels).mean()
    assert abs(terms["penalty"] - terms["adversarial_loss"]) > 0.1
    mixed = 0.75 * terms["adversarial_loss"] + 0.25 * terms["penalty"]
    np.testing.assert_allclose(value - clean, 3 * mixed, rtol=1e-4)


def test_gradient_regularization_adds_the_penalty_of_the_library(train_set):
    config = dataclasses.replace(
        TINY, method="gradient_regularization", weight=2.0, penalty_fraction=1.0
    )
    step, state, batch, f = setup(config, train_set, np.arange(16))

    def both(x):
        def loss(x):
            return losses(f(x), batch.labels)

        return loss(x).mean(), regularizers.gradient_penalty(loss, x).value.mean()

    value, auxiliary = step(state)
    clean, expected = jax.jit(both)(batch.images)
    np.testing.assert_allclose(auxiliary.metrics["penalty"], expected, rtol=1e-3)
    np.testing.assert_allclose(value, clean + 2 * expected, rtol=1e-4)


def test_amortized_search_remembers_the_gain_of_each_example(train_set):
    config = dataclasses.replace(
        TINY, method="data_dependent_snr", variant="derivative"
    )
    indices = np.arange(5, 21)
    step, start, batch, f = setup(config, train_set, indices)
    # With fixed weights its sigma rises to the largest singular value, never above.
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda z: f(z[None])[0])))(batch.images)
    exact = np.linalg.svd(np.asarray(jacobian).reshape(16, 10, -1), compute_uv=False)
    gains, state = [], start
    for _ in range(30):
        _, auxiliary = step(state)
        state = auxiliary.method_state
        gains.append(float(auxiliary.metrics["jacobian_norm"]))
    assert np.all(np.diff(gains) > -1e-4)
    np.testing.assert_allclose(gains[-1], exact[:, 0].mean(), rtol=1e-2)
    untouched = np.setdiff1d(np.arange(48), indices)
    np.testing.assert_array_equal(state["left"][untouched], start["left"][untouched])
