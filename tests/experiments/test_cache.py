"""Results kept on disk are bound to their measurement and to their own content."""

import dataclasses
import json
import math
import shutil

import numpy as np

import opnorm
from experiments.common import cache, jobs, measure
from opnorm import data, models, training
from opnorm.training import Config

KEY = {"identity": "a network", "range": [0, 3], "epsilons": [0.5]}


def arrays():
    success = np.array([[True, False, True]])
    return {"success": success, "distance": np.array([[0.5, np.inf, 0.25]])}


def forge(file, **changes):
    """Edits arrays of a saved part and leaves the rest, its digest too."""
    with np.load(file) as stored:
        content = {name: stored[name] for name in stored.files}
    np.savez_compressed(file, **(content | changes))


def test_a_part_comes_back_for_its_key_alone(tmp_path):
    parts = cache.Parts(tmp_path)
    parts.put(KEY, arrays())
    assert parts.get(KEY | {"epsilons": [0.25]}) is None
    assert parts.reused == 0
    # The name and the digest that earlier versions gave it, so that theirs are found.
    (file,) = tmp_path.iterdir()
    assert file.name == "e853c0a5b4a1a892a844f2ae.npz"
    assert str(np.load(file)["digest"]).startswith("c4de0ebe871e2fb9d0eae959ffa79")
    found = parts.get(KEY)
    assert set(found) == {"success", "distance"}
    assert parts.reused == 1
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name], array)
    assert cache.Parts(tmp_path, fresh=True).get(KEY) is None
    below = parts.below("best_known")
    below.put(KEY, arrays())
    assert (tmp_path / "best_known").is_dir()
    assert below.get(KEY) is not None


def test_an_edited_part_is_computed_again(tmp_path, caplog):
    parts = cache.Parts(tmp_path)
    parts.put(KEY, arrays())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    # Without a digest, as an earlier version or somebody else writes it.
    forgeries = [{"distance": np.zeros((1, 3))}, {"more": np.zeros(1)}, {"digest": "0"}]
    forgeries += [{"success": arrays()["success"].astype(np.uint8)}]
    for changes in forgeries:
        file.write_bytes(whole)
        forge(file, **changes)
        assert parts.get(KEY) is None
    np.savez_compressed(file, **arrays())
    assert parts.get(KEY) is None
    # An honest part of another network, under this one's name.
    other = cache.Parts(tmp_path / "other")
    other.put(KEY | {"identity": "another"}, arrays())
    shutil.copy(next((tmp_path / "other").iterdir()), file)
    assert parts.get(KEY) is None
    assert parts.reused == 0
    # Pickled objects would be code.
    np.savez(file, success=np.array([Exception], dtype=object))
    assert parts.get(KEY) is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(forgeries) + 3
    assert all(f"{file} is damaged or was edited" in text for text in messages)


def test_examples_are_measured_part_by_part_and_each_part_once(tmp_path):
    calls = []

    def measure(first, last, tell):
        calls.append((first, last))
        tell(0.5)
        return {"twice": 2 * np.arange(first, last)}

    def run(parts, **changes):
        found = cache.in_parts(
            parts, KEY | changes, measure, count=7, part_size=3, description="a test"
        )
        return np.concatenate([part["twice"] for part in found]).tolist()

    parts = cache.Parts(tmp_path)
    assert run(parts) == list(range(0, 14, 2))
    assert calls == [(0, 3), (3, 6), (6, 7)]
    assert parts.reused == 0
    # A killed process left all parts but one.
    (lost,) = (f for f in tmp_path.iterdir() if np.load(f)["twice"][0] == 6)
    lost.unlink()
    assert run(parts) == list(range(0, 14, 2))
    assert calls[3:] == [(3, 6)]
    assert parts.reused == 2
    run(parts, epsilons=[0.25])
    assert calls[4:] == calls[:3]


def network(params, batch_stats=None):
    """A network that is not called."""
    variables = {"params": params, "batch_stats": batch_stats or {}}
    return opnorm.network(models.create("mlp1", num_classes=2), variables)


def test_a_fingerprint_tells_apart_whatever_decides_a_measurement():
    images = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    examples = data.Dataset(images, np.zeros(2, np.int32), ("a", "b"), "x", "x")
    config = Config(model="mlp1", width=4)
    params = {"a": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float32)}
    changed = images.copy()
    changed[1, 1, 3, 2] ^= 1

    def replace(**changes):
        return dataclasses.replace(examples, **changes)

    cases = [
        (config, network(params), examples),
        (dataclasses.replace(config, activation="elu"), network(params), examples),
        (dataclasses.replace(config, normalization="none"), network(params), examples),
        (dataclasses.replace(config, scalar_biases=True), network(params), examples),
        (config, network({"a": params["a"].T.copy(), "b": params["b"]}), examples),
        (config, network({"a": params["a"], "c": params["b"]}), examples),
        (config, network({"a": params["a"]}, {"b": params["b"]}), examples),
        (config, network(params | {"b": np.nextafter(params["b"], 2)}), examples),
        (config, network(params), replace(images=changed)),
        (config, network(params), replace(labels=np.array([0, 1], np.int32))),
        (config, network(params), replace(class_names=("a", "c"))),
        (config, network(params), examples, examples),
    ]
    found = [cache.fingerprint(*case) for case in cases]
    assert len(set(found)) == len(cases)
    # These fields decide nothing: where it was trained, and for how long.
    same = dataclasses.replace(config, seed=7, epochs=3, data_dir="/elsewhere")
    assert cache.fingerprint(same, network(params), examples) == found[0]


def test_fields_that_were_added_change_no_identity_at_their_defaults():
    added = {"depth", "scalar_biases", "scalar_multipliers", "epsilon_unit"}
    added |= {"dropout", "validation_fraction"}
    names = {field.name for field in dataclasses.fields(Config)} - {"data_dir"}
    found = cache.network_settings(Config(), "identity")["config"]
    assert set(found) == names - added
    config = Config(epsilon_unit="standardized")
    other = cache.network_settings(config, "identity")["config"]
    assert other == found | {"epsilon_unit": "standardized"}


def test_measurements_are_kept_for_the_same_settings_and_content_only(tmp_path, capsys):
    file = tmp_path / "measured.json"
    calls = []

    def cached(settings, **options):
        def compute():
            calls.append(None)
            return {"kappa": math.inf, "count": np.int32(len(calls))}

        return cache.cached(file, settings, compute, **options)

    first = cached({"test": (3,)})
    assert first == {"settings": {"test": [3]}, "kappa": "inf", "count": 1}
    assert "taken from" not in capsys.readouterr().err
    assert cached({"test": (3,)}) == first
    assert f"{file} is taken from an earlier measurement" in capsys.readouterr().err
    assert cached({"test": 4})["count"] == 2
    assert cached({"test": 4}, fresh=True)["count"] == 3
    stored = json.loads(file.read_text())
    for text in (
        json.dumps(stored | {"count": 0}),
        json.dumps({name: stored[name] for name in stored if name != "digest"}),
        "not JSON",
        "[" * 100_000,
        "[]",
    ):
        file.write_text(text)
        before = len(calls)
        assert cached({"test": 4})["count"] == before + 1
    assert cached({"test": 4})["count"] == len(calls)


def test_a_measurement_of_another_network_is_not_reused(tmp_path, monkeypatch):
    examples = data.Dataset(
        np.zeros((2, 2, 2, 3), np.uint8), np.zeros(2, np.int32), ("a", "b"), "x", "x"
    )
    weight, calls = np.zeros(3, np.float32), []

    def train(config, **_):
        return training.TrainResult(network({"w": weight}), 3, {})

    def measured(_, examples, pga, **options):
        calls.append(pga.num_steps)
        return {"clean_accuracy": 0.5}

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(measure, "measure", measured)

    def run(config=None, steps=2, fresh=False):
        return measure.train_and_measure(
            config or Config(),
            tmp_path,
            examples,
            examples,
            epsilons=[0.5],
            num_steps=steps,
            fresh=fresh,
        )

    first = run()
    assert run() == first
    assert len(calls) == 1
    assert run(Config(data_dir="/moved")) == first
    assert len(calls) == 1
    run(steps=3)
    run(Config(epochs=99))
    weight[1] = 1e-3
    run(Config(epochs=99))
    run(Config(epochs=99), fresh=True)
    assert calls == [2, 3, 2, 2, 2]


def test_where_a_received_run_says_that_data_are_is_not_used(tmp_path, save_untrained):
    config = Config(model="mlp1", width=4, dataset="cifar10", data_dir="received/data")
    save_untrained(tmp_path, config, 0)
    found = training.load_run(tmp_path).config
    assert found == dataclasses.replace(config, data_dir=None)


def test_a_folder_that_only_the_run_names_is_said(capsys):
    config = Config(dataset="folder:/somewhere")
    assert jobs.dataset_name("folder:/mine", config) == "folder:/mine"
    assert jobs.dataset_name(None, Config()) == Config().dataset
    assert capsys.readouterr().err == ""
    assert jobs.dataset_name(None, config) == "folder:/somewhere"
    expected = "images are read from /somewhere, which the run names\n"
    assert capsys.readouterr().err == expected
