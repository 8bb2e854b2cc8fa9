"""Phases, epochs, batches and learning rates of steps."""

import dataclasses

import numpy as np
import pytest

from opnorm import data
from opnorm.training import Config, plan

PROGRESSIVE = Config(
    dataset="image_folder:/nowhere",
    phases="0:128:20:0.08,2:224:10:0.1,3:288:5:0.5",
    epochs=4,
)


def test_one_phase_is_the_batches_of_the_data_set():
    config = Config(batch_size=8, epochs=3)
    made = plan.make(config, 30)
    assert made.total_steps == 9
    for step in range(9):
        np.testing.assert_array_equal(
            made.indices(5, step), data.batch_indices(5, step, 8, 30)
        )


def test_phases_change_sizes_at_their_epochs():
    made = plan.make(PROGRESSIVE, 41)
    # 2 epochs of 2 steps, 1 of 4, 1 of 8.
    assert made.total_steps == 4 + 4 + 8
    sizes = [made.phase(step).image_size for step in range(16)]
    assert sizes == [128] * 4 + [224] * 4 + [288] * 8
    assert [made.end(phase) for phase in made.phases] == [4, 8, 16]
    assert [made.step_at(epoch) for epoch in (0, 1, 2, 2.5, 3, 4)] == [
        0,
        2,
        4,
        6,
        8,
        16,
    ]
    ends = [done for done in range(1, 17) if made.is_end_of_epoch(done)]
    assert ends == [2, 4, 8, 16]
    done = [made.epochs_done(step) for step in (0, 2, 4, 5, 8, 12, 16)]
    np.testing.assert_allclose(done, [0, 1, 2, 2.25, 3, 3.5, 4])
    for step in range(17):
        before = sum(made.phase(earlier).batch_size for earlier in range(step))
        assert made.examples_done(step) == before


def test_each_epoch_of_each_phase_visits_examples_once():
    made = plan.make(PROGRESSIVE, 41)
    for steps in (range(0, 2), range(2, 4), range(4, 8), range(8, 16)):
        seen = np.concatenate([made.indices(3, step) for step in steps])
        assert len(set(seen.tolist())) == 40
    first, second = made.indices(3, 0), made.indices(3, 2)
    assert set(first.tolist()) != set(second.tolist())


def rates(config, examples=100):
    made = plan.make(config, examples)
    schedule = plan.schedule(config, made)
    return np.array([float(schedule(step)) for step in range(made.total_steps)])


@pytest.mark.parametrize(
    ("change", "longer", "differs"),
    [
        ({"schedule": "constant"}, {}, None),
        ({"schedule": "constant", "warmup_epochs": 1.5}, {}, None),
        ({"schedule": "cosine"}, {}, 1),
        # Half and three quarters of the epochs: of 20 steps they were 10 and 15.
        ({"schedule": "step"}, {}, 10),
        ({"schedule": "step", "milestones": "1,3"}, {}, None),
        ({"schedule": "step", "milestones": "1"}, {"milestones": "1,5"}, None),
        ({"schedule": "step", "milestones": "1"}, {"milestones": "1,3"}, 15),
        (
            {"schedule": "linear", "learning_rates": "0:0,2:1,4:0.5"},
            {"learning_rates": "0:0,2:1,4:0.5,6:0"},
            None,
        ),
        (
            {"schedule": "linear", "learning_rates": "0:0,2:1,4:0.5"},
            {"learning_rates": "0:0,2:1,6:0.5"},
            11,
        ),
    ],
)
def test_epochs_are_added_where_the_steps_before_stay(change, longer, differs):
    before = Config(epochs=4, batch_size=20, **change)
    config = dataclasses.replace(before, epochs=6, **longer)
    made = plan.make(config, 100)
    # An independent look at the rates.
    short, long = rates(before), rates(config)[:20]
    changed = np.flatnonzero(short != long)
    assert (changed[0] if len(changed) else None) == differs
    if differs is None:
        plan.check_extension(before, config, made)
        return
    message = f"4 in the run and 6.*from step {differs + 1} on"
    with pytest.raises(ValueError, match=message):
        plan.check_extension(before, config, made)


def test_steps_are_counted_in_32_bits():
    plan.make(Config(epochs=2**31 - 1, batch_size=20), 20)
    with pytest.raises(ValueError, match=r"epochs is 1073741824.*2147483648 steps"):
        plan.make(Config(epochs=2**30, batch_size=20), 40)


def test_milestones_are_epochs():
    config = Config(
        schedule="step",
        milestones="2,3",
        decay_factor=0.2,
        learning_rate=0.1,
        epochs=4,
        batch_size=20,
    )
    expected = np.repeat([0.1, 0.1, 0.02, 0.004], 5)
    np.testing.assert_allclose(rates(config), expected, rtol=1e-6)


def test_linear_rates_join_their_points_and_jump_where_an_epoch_is_given_twice():
    config = Config(
        schedule="linear",
        learning_rates="0:0.2,1:0.4,1:0.1,4:0",
        epochs=4,
        batch_size=20,
    )
    steps = np.arange(20) / 5
    expected = np.where(steps < 1, 0.2 + 0.2 * steps, 0.1 * (4 - steps) / 3)
    np.testing.assert_allclose(rates(config), expected, atol=1e-7)


def test_linear_rates_follow_epochs_where_phases_have_other_lengths():
    config = dataclasses.replace(
        PROGRESSIVE, schedule="linear", learning_rates="0:0,4:4"
    )
    made = plan.make(config, 41)
    expected = [made.epochs_done(step) for step in range(16)]
    # The points are epochs, the lines between them are straight in steps.
    np.testing.assert_allclose(rates(config, 41)[[0, 15]], [0, 15 / 4], atol=1e-6)
    assert expected[-1] != pytest.approx(15 / 4)
    joined = dataclasses.replace(config, learning_rates="0:0,2:2,3:3,4:4")
    np.testing.assert_allclose(rates(joined, 41), expected, atol=1e-6)


def test_warmup_rises_to_the_rate():
    config = Config(schedule="constant", warmup_epochs=2, epochs=4, batch_size=20)
    expected = 2e-3 * np.minimum(1, (np.arange(20) + 1) / 10)
    np.testing.assert_allclose(rates(config), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": "0:128:20"}, "phases is '0:128:20'.*first epoch"),
        ({"phases": "1:128:20:0.5"}, "begin at 0"),
        ({"phases": "0:128:20:0.5,0:224:20:0.5"}, "begin at 0 and rise"),
        ({"phases": "0:128:20:1.5"}, "areas"),
        ({"phases": "0:128:20:0.5,4:8:8:0.5"}, "before the 4 epochs end"),
        ({"batch_size": 32}, "batch_size is 32.*phases they decide"),
        ({"image_size": 32}, "image_size is 32.*phases they decide"),
        ({"accumulation_steps": 4}, "accumulation_steps is 4.*divide.*10"),
        ({"cutout": 8}, "cutout is 8.*streamed"),
        ({"schedule": "linear"}, "learning_rates is not given"),
        ({"learning_rates": "0:1,4:1"}, "learning_rates.*schedule 'cosine'"),
        ({"schedule": "linear", "learning_rates": "0:1,3:1"}, "end with the 4 epochs"),
        ({"schedule": "linear", "learning_rates": "0:1,x"}, "epoch:rate"),
        ({"schedule": "linear", "learning_rates": "0:1,4:-1"}, "at least 0"),
        ({"milestones": "1,2"}, "milestones is '1,2'.*schedule 'cosine'"),
        ({"schedule": "step", "milestones": "2,1"}, "milestones is '2,1'"),
        ({"decay_factor": 0.5}, "decay_factor is 0.5"),
        ({"nesterov": True}, "nesterov is True.*'sgd'"),
        ({"decayed": "kernels_and_scales"}, "decayed.*weight_decay"),
        ({"warmup_epochs": 5.0}, "warmup_epochs is 5"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    from opnorm.training import validate

    validate(PROGRESSIVE)
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(PROGRESSIVE, **change))


def test_sizes_of_streamed_pictures_are_refused_for_data_in_memory():
    from opnorm.training import validate

    for change in ({"phases": "0:64:8:0.5"}, {"least_area": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.*not streamed"):
            validate(Config(**change))
