"""Accuracies on held-out examples, and the checkpoint that is the best by them."""

import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import data, runs, training
from opnorm.runs import checkpoints
from opnorm.training import plan
from opnorm.training.validation_accuracy import ATTACKED, CLEAN, ValidationAccuracy

CONFIG = training.Config(
    model="mlp",
    width=8,
    epochs=4,
    batch_size=16,
    method="adversarial_only",
    num_steps=2,
    epsilon=0.1,
    learning_rate=1e-2,
    train_examples=48,
    validation_fraction=0.02,
    augment=False,
    seed=3,
)


@pytest.fixture(scope="module")
def options():
    """The arguments of all runs here."""
    validation_set = training.load_validation_set(CONFIG, limit=40)
    return {
        "train_set": training.load_train_set(CONFIG),
        "validation_set": validation_set,
        "show_progress": False,
        "keep_best": True,
        "mesh": training.data_mesh(jax.devices()[:1]),
    }


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """The directory of a run, and the metrics of its validated epochs."""
    directory = tmp_path_factory.mktemp("finished")
    training.train(CONFIG, directory=directory, **options)
    return directory, validated(directory)


def validated(directory):
    return [line for line in runs.read_metrics(directory) if CLEAN in line]


def earliest_best(lines, metric=ATTACKED):
    best = max(line[metric] for line in lines)
    return next(line["step"] for line in lines if line[metric] == best)


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def brightness(threshold, x):
    """The first class where the mean of an image is above a threshold."""
    margin = jnp.mean(x, axis=(1, 2, 3)) - threshold
    return jnp.stack([margin, -margin], axis=1)


@pytest.mark.parametrize("devices", [1, 4])
def test_accuracies_are_those_that_can_be_counted(devices):
    # Linf perturbations move the mean by epsilon at most, and PGA reaches that: these
    # are 0.1, 0.02 and -0.02 above the threshold and 0.1 below it.
    values = [0.6, 0.52, 0.48, 0.4]
    bytes_ = np.repeat(np.uint8(np.rint(255 * np.array(values))), [10, 5, 3, 5])
    images = np.tile(bytes_[:, None, None, None], (1, 4, 4, 3))
    labels = np.int32([0] * 15 + [0] * 3 + [1] * 5)
    examples = data.Dataset(images, labels, ("a", "b"), "x", "x")
    config = dataclasses.replace(CONFIG, p=float("inf"), epsilon=0.05)
    network = jax.tree_util.Partial(brightness, jnp.float32(0.5))
    mesh = training.data_mesh(jax.devices()[:devices])
    planned = plan.make(config, 48)
    check = ValidationAccuracy(config, planned, mesh, examples, 1)
    found = check.measure(network, 3)
    assert found == {CLEAN: 20 / 23, ATTACKED: 15 / 23}
    # Another threshold is another network of the same program.
    dark = jax.tree_util.Partial(brightness, jnp.float32(0.3))
    assert check.measure(dark, 3) == {CLEAN: 18 / 23, ATTACKED: 18 / 23}
    clean = ValidationAccuracy(
        dataclasses.replace(config, epsilon=0.0), planned, mesh, examples, 1
    )
    assert clean.measure(network, 3) == {CLEAN: 20 / 23}


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        ({}, ATTACKED),
        ({"method": "global_snr"}, ATTACKED),
        ({"epsilon": 0.0}, CLEAN),
        ({"method": "standard"}, CLEAN),
    ],
)
def test_the_best_is_chosen_under_attack_where_there_is_one(change, metric, options):
    config = dataclasses.replace(CONFIG, **change)
    examples, mesh = options["validation_set"], options["mesh"]
    check = ValidationAccuracy(config, plan.make(config, 48), mesh, examples, 3)
    assert check.criterion.metric == metric
    assert [step for step in range(1, 13) if check.is_due(step)] == [9, 12]


def test_the_earliest_best_checkpoint_is_kept_beside_the_last(finished, options):
    directory, lines = finished
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    step = earliest_best(lines)
    # The case says something only if the best is neither the only nor the last one.
    assert step < 12
    best = training.load_run(directory, checkpoint="best")
    assert best.step == step
    record = best.metadata["best"]
    assert record["metric"] == ATTACKED
    assert record["accuracy"] == max(line[ATTACKED] for line in lines)
    assert (record["examples"], record["num_steps"]) == (40, 10)
    last = training.load_run(directory)
    assert last.step == 12
    assert "best" not in last.metadata
    assert_identical(training.load_run(directory / "best").network, best.network)
    # The checkpoint holds the network that was measured.
    check = ValidationAccuracy(
        CONFIG, plan.make(CONFIG, 48), options["mesh"], options["validation_set"], 1
    )
    assert check.measure(best.network, step)[ATTACKED] == record["accuracy"]


def test_a_run_that_goes_on_ends_with_the_same_best(
    finished, options, tmp_path, interrupt
):
    directory, lines = finished
    stopped = {**options, "train_set": interrupt(options["train_set"], after=8)}
    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIG, directory=tmp_path, checkpoint_every=7, **stopped)
    training.train(CONFIG, directory=tmp_path, checkpoint_every=7, **options)
    assert validated(tmp_path) == lines
    one, other = (training.load_run(d, "best") for d in (directory, tmp_path))
    assert one.step == other.step
    assert_identical(one.network, other.network)


def test_a_best_checkpoint_ahead_of_the_last_one_is_measured_again(
    finished, options, tmp_path
):
    directory, lines = finished
    step = earliest_best(lines)
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    # As after a kill between the two, and with later ones damaged.
    for folder in (tmp_path / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) >= step:
            shutil.rmtree(folder)
    left = [int(f.name) for f in (tmp_path / "checkpoints").iterdir()]
    if not left:
        (tmp_path / "checkpoints.json").unlink()
    training.train(CONFIG, directory=tmp_path, **options)
    assert training.load_run(tmp_path, "best").step == step
    assert validated(tmp_path) == lines


def test_other_ways_to_choose_are_refused_and_a_loss_is_told(
    finished, options, tmp_path, caplog
):
    directory, _ = finished
    fewer = {**options, "validation_set": options["validation_set"].slice(0, 30)}
    with pytest.raises(ValueError, match=r"chosen in another way: examples is 40"):
        training.train(CONFIG, directory=directory, **fewer)
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "best")
    with caplog.at_level(logging.WARNING):
        training.train(CONFIG, directory=tmp_path, **options)
    assert "whose checkpoint was not kept" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"best; a run that is trained with"):
        training.load_run(tmp_path, "best")
    with pytest.raises(ValueError, match=r"checkpoint is 'first'; it may be last, bes"):
        training.load_run(tmp_path, "first")


def test_training_is_the_same_with_and_without_measurements(finished, options):
    plain = {**options, "keep_best": False, "validate_every": 0}
    result = training.train(CONFIG, **plain)
    assert CLEAN not in result.metrics
    assert_identical(result.network, training.load_run(finished[0]).network)


def test_images_that_are_held_out_are_those_of_the_configuration(options):
    found = training.load_validation_set(CONFIG)
    again = dataclasses.replace(CONFIG, train_examples=7, seed=9, random_labels=1.0)
    whole = training.load_validation_set(again)
    np.testing.assert_array_equal(found.images, whole.images)
    np.testing.assert_array_equal(found.labels, whole.labels)
    trained = {bytes(i) for i in options["train_set"].images}
    assert not trained & {bytes(i) for i in found.images}
    assert len(trained) == 48


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (
            {"validation_fraction": 1.0},
            {},
            r"validation_fraction is 1.0; it must be in",
        ),
        (
            {"validation_fraction": 0.0},
            {"validate_every": 1},
            "needs a validation_frac",
        ),
        (
            {"validation_fraction": 0.0},
            {"keep_best": True},
            "keep_best is True; it nee",
        ),
        ({}, {"keep_best": True}, "keep_best is True; it needs a directory"),
        ({}, {"keep_best": True, "validate_every": 0}, "which is 0"),
        ({}, {"validate_every": -1}, "validate_every is -1; it must be at least 0"),
        ({}, {"validation_examples": 0}, "validation_examples is 0; it must be at lea"),
    ],
)
def test_bad_values_are_refused_before_data_are_read(change, given, message):
    config = dataclasses.replace(CONFIG, dataset="folder:/nowhere", **change)
    with pytest.raises(ValueError, match=message):
        training.train(config, **given)


def test_a_training_set_that_holds_the_validation_images_is_refused(options):
    whole = data.load("cifar10_mini", split="train")
    with pytest.raises(ValueError, match="40 of 40 images of the validation set"):
        training.train(CONFIG, **{**options, "train_set": whole, "keep_best": False})


def test_only_whole_steps_of_the_best_are_discarded(tmp_path):
    store = checkpoints.CheckpointStore(tmp_path / "best", max_to_keep=2)
    # Commands write results below the directory that they measure.
    (tmp_path / "best" / "evaluation").mkdir(parents=True)
    for step in (3, 6, 9):
        store.save(step, {"a": np.float32(step)}, {})
    store.close()
    again = checkpoints.CheckpointStore(tmp_path / "best", max_to_keep=2)
    again.discard_after(6)
    restored = again.restore({"a": np.float32(0)})
    assert (restored.step, restored.state["a"]) == (6, 6)
    again.save(8, {"a": np.float32(8)}, {})
    again.close()
    left = sorted(folder.name for folder in (tmp_path / "best").iterdir())
    assert left == ["6", "8", "evaluation"]
