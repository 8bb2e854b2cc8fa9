"""A change under a run is noticed; nothing is trained here."""

import dataclasses
import json

import pytest

from opnorm import runs, training
from opnorm.training.shared_run import SharedRun

CONFIG = training.Config(dataset="folder:/a", epochs=2, schedule="constant")
DATA = {"examples": 128, "digest": "d"}


def begin(directory, config=CONFIG, fingerprint=DATA, **changes):
    config = dataclasses.replace(config, **changes)
    objective = training.make_objective(config, 2, (8, 8, 3))
    plan = training.make_plan(config, 128)
    program = training.Program(objective, plan, training.data_mesh())
    SharedRun(directory, config, program, fingerprint).close()


def card(directory):
    return json.loads((directory / "flags.json").read_text())


def test_the_same_data_may_lie_elsewhere(tmp_path):
    begin(tmp_path)
    begin(tmp_path, dataset="folder:/b", data_dir="/c")
    assert card(tmp_path)["flags"]["dataset"] == "folder:/a"
    with pytest.raises(ValueError, match="dataset is folder:/a there and cifar10 here"):
        begin(tmp_path, dataset="cifar10")


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        ({"examples": 129, "digest": "e"}, "128 examples there and 129 here"),
        ({"examples": 128, "digest": "e"}, "128 examples, but other images or labels"),
    ],
)
def test_other_data_are_refused(tmp_path, fingerprint, message):
    begin(tmp_path)
    for dataset in ("folder:/a", "folder:/b"):
        with pytest.raises(ValueError, match=f"other data.*{message}"):
            begin(tmp_path, fingerprint=fingerprint, dataset=dataset)


def test_another_network_to_start_from_is_refused_wherever_it_lies(tmp_path):
    begun = {"init_from": "runs/a", "fingerprint": DATA | {"start": "s"}}
    begin(tmp_path, **begun)
    begin(tmp_path, **begun | {"init_from": "moved/a"})
    for path in ("runs/a", "moved/a"):
        with pytest.raises(ValueError, match="another network than init_from names"):
            begin(tmp_path, init_from=path, fingerprint=DATA | {"start": "t"})
    with pytest.raises(ValueError, match="init_from is runs/a there and None here"):
        begin(tmp_path)


def test_a_run_without_the_record_opens_with_its_own_flags(tmp_path):
    begin(tmp_path)
    stored = card(tmp_path)
    del stored["data"]
    (tmp_path / "flags.json").write_text(json.dumps(stored))
    begin(tmp_path, fingerprint={"examples": 1, "digest": "e"})
    with pytest.raises(ValueError, match="dataset is folder:/a there and folder:/b"):
        begin(tmp_path, dataset="folder:/b")


def test_added_epochs_are_noted_and_not_taken_back(tmp_path):
    begin(tmp_path)
    before = card(tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate is 0.002 there and 0.1 here"):
        begin(tmp_path, epochs=4, learning_rate=0.1)
    assert card(tmp_path) == before
    begin(tmp_path, epochs=4)
    begin(tmp_path, epochs=5)
    found = card(tmp_path)
    assert found["flags"] == before["flags"] | {"epochs": 5}
    assert [note["before"]["epochs"] for note in found["changes"]] == [2, 4]
    with pytest.raises(ValueError, match="epochs is 5 there and 4 here"):
        begin(tmp_path, epochs=4)
    # Only with more epochs may what decides the learning rate change.
    with pytest.raises(ValueError, match="learning_rates is None there"):
        begin(tmp_path, epochs=5, learning_rates="0:1,5:0")


def test_epochs_are_not_added_where_steps_would_have_been_others(tmp_path):
    begin(tmp_path, schedule="cosine")
    before = card(tmp_path)
    with pytest.raises(ValueError, match=r"epochs is 2 in the run and 3 here.*step 2"):
        begin(tmp_path, schedule="cosine", epochs=3)
    assert card(tmp_path) == before


def test_a_run_in_use_is_refused_and_a_failure_lets_others_in(tmp_path):
    begin(tmp_path)
    in_use = pytest.raises(runs.RunInUse, match="is in use by process")
    with runs.RunDirectory(tmp_path).locked(), in_use:
        begin(tmp_path)
    with pytest.raises(ValueError, match="another run"):
        begin(tmp_path, width=3)
    begin(tmp_path)
