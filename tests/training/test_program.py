"""A configuration is one value, and equal values share what they compile."""

import dataclasses

import jax
import pytest

from opnorm import training

CONFIG = training.Config(model="mlp", width=8, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def make(train_set):
    """``(**changes) ->`` the program of a changed configuration on one device."""
    mesh = training.data_mesh(jax.devices()[:1])

    def make(parameter_sharding="replicated", **changes):
        config = dataclasses.replace(CONFIG, **changes)
        return training.make_program(config, train_set, mesh, parameter_sharding)

    return make


def test_runs_that_differ_in_no_program_share_all_of_them(make):
    first = make()
    again = make(seed=7, init_from="runs/a", random_labels=0.5)
    assert first == again
    assert hash(first) == hash(again)
    assert first.step is again.step
    assert first.objective.method is again.objective.method
    assert first.objective.module == again.objective.module


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"learning_rate": 0.1},
        {"augment": False},
        {"parameter_sharding": "fsdp"},
    ],
)
def test_other_steps_are_another_program_of_one_method(make, change):
    first, other = make(), make(**change)
    assert first != other
    assert first.step is not other.step
    same = first.objective == other.objective
    assert same == ("parameter_sharding" in change)


def test_only_a_bound_by_clipping_changes_parameters_between_epochs(make):
    bound = {"spectral_norm_bound": 1.0}
    assert make().clip is None
    assert make(**bound).clip is None
    clipped = make(**bound, spectral_norm_method="clip")
    assert clipped.clip is clipped.clip is not None


def test_streamed_images_come_augmented(make, train_set):
    options = {"flip": True, "padding": "zero", "cutout": 0}
    assert make().augmentation.keywords == options
    assert make(dataset="mnist").augmentation.keywords["flip"] is False
    assert make(augment=False).augmentation is None
    assert make(dataset="image_folder:/images").augmentation is None


def test_a_start_that_does_not_fit_is_refused_by_name(make):
    wider = make(width=9)
    params, batch_stats = jax.eval_shape(wider.objective.init, jax.random.key(0))
    start = wider.objective.network(params, batch_stats, {})
    words = r"init_from is runs/a, .* dense1/bias: \(9,\) there, \(8,\) here"
    with pytest.raises(ValueError, match=words):
        make().initial_state(0, start, "runs/a")
