"""Evaluations and jobs of several networks: files that they read, merge or refuse."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import opnorm
from experiments.common import attack_specs, cache, comparison, jobs
from experiments.evaluate import averages, goals, tables
from experiments.evaluate import measure as evaluating
from opnorm import attacks, data, training
from opnorm.training import Config


def random_images(count, side, num_classes):
    draws = np.random.default_rng(0)
    return data.Dataset(
        draws.integers(0, 256, (count, side, side, 3)).astype(np.uint8),
        draws.integers(0, num_classes, count).astype(np.int32),
        tuple(map(str, range(num_classes))),
        "drawn",
        "drawn images",
    )


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pga random_start=false", {"random_start": False, "keep": "success"}),
        ("pga random_start=TRUE keep=last", {"random_start": True, "keep": "last"}),
        ("pga step_size=None", {"step_size": None, "keep": "success"}),
        ("pga step_size=none", {"step_size": None, "keep": "success"}),
        ("pga step_size=inf q=1.5", {"step_size": math.inf, "q": 1.5}),
        ("pga step_size=2/255", {"step_size": 2 / 255}),
        ("square channels=first", {"channels": "first"}),
        ("auto_attack channels=none", {"channels": "none"}),
        ("apgd loss=dlr num_steps=3", {"loss": "dlr", "num_steps": 3}),
        ("wrm gamma=2", {"gamma": 2}),
        ("wrm penalty=4.0", {"penalty": 4.0}),
        ("decoupled_direction initial_epsilon=0.5", {"initial_epsilon": 0.5}),
    ],
)
def test_options_of_attacks_are_read_as_what_they_are(text, options):
    found = attack_specs.parse_attack(text)
    assert found.name == text.split()[0]
    for name, value in options.items():
        read = dict(found.options)[name]
        assert read == value
        assert type(read) is type(value)
    attack_specs.factory(found, 2.0)(np.ones(1, np.float32))


def test_every_attack_is_read_with_its_own_defaults():
    for name in attacks.NAMES:
        text = "wrm gamma=2" if name == "wrm" else name
        assert attack_specs.parse_attack(text).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AutoAttack", "auto_attack"),
        ("auto-attack", "auto_attack"),
        ("DeepFool num_steps=3", "deepfool"),
        ("FGM", "fgm"),
    ],
)
def test_names_of_attacks_are_found_whatever_their_spelling(text, name):
    assert attack_specs.parse_attack(text).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pgd", "here it is pga."),
        ("PGD num_steps=3", "here it is pga."),
        ("fgsm", "here it is fgm, with --p=inf."),
        ("cw", "here it is carlini_wagner."),
        ("magic", "it may be apgd, auto_attack, "),
    ],
)
def test_other_names_of_attacks_are_answered_with_the_name_here(text, words):
    with pytest.raises(ValueError, match=words):
        attack_specs.parse_attack(text)


def test_other_names_of_attacks_lead_to_attacks():
    for name in attack_specs._OTHER_NAMES.values():
        attack_specs.parse_attack(name.split(",")[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pga 10", ["'pga 10'", "option=value"]),
        ("pga targeted=True", ["targeted=True", "--targets"]),
        ("pga bounds=None", ["bounds=None", "stay in [0, 1]"]),
        ("pga bounds=(0,2)", ["bounds=(0, 2)", "stay in [0, 1]"]),
        ("deepfool p=inf", ["p=inf", "--p"]),
        ("fab epsilon=3", ["epsilon=3", "--epsilons"]),
        ("fgm name=other", ["fgm", "no option 'name'", "it has loss."]),
        ("pga steps=3", ["no option 'steps'", "num_steps"]),
        ("pga random_start=off", ["random_start=off", "true or false"]),
        ("pga random_start=none", ["random_start=None", "true or false"]),
        ("pga num_steps=ten", ["num_steps=ten", "a number."]),
        ("pga num_steps=true", ["num_steps=True", "a number."]),
        ("pga num_steps=[3]", ["num_steps=[3]", "a number."]),
        ("pga step_size=1/0", ["step_size=1/0", "a number or none"]),
        ("pga step_size=2/x", ["step_size=2/x", "a number or none"]),
        ("pga loss=3", ["loss=3", "a name"]),
        ("wrm", ["wrm", "such as 'wrm gamma=2'"]),
        ("wrm num_steps=3", ["such as 'wrm gamma=2'"]),
    ],
)
def test_options_that_an_attack_may_not_be_given_are_refused(text, words):
    with pytest.raises(ValueError, match="attack") as error:
        attack_specs.parse_attack(text)
    for word in words:
        assert word in str(error.value)


def two_classes(weight, x):
    z = x.reshape(len(x), -1) @ weight
    return jax.numpy.stack([z, -z], axis=1)


def test_what_an_attack_broke_within_a_budget_is_known_to_fall_within_it(tmp_path):
    images = random_images(64, 4, 2)
    weight = np.random.default_rng(1).normal(size=48).astype(np.float32)
    epsilons = [1 / 255, 0.05]
    fgm = attack_specs.parse_attack("fgm")
    settings = evaluating.Settings(
        attacks=[fgm],
        p=math.inf,
        epsilons=epsilons,
        typical_epsilon=0.05,
        batch_size=64,
        part_size=64,
        check_examples=0,
        seed=0,
    )
    f = jax.tree_util.Partial(two_classes, weight - weight.mean())
    parts = cache.Parts(tmp_path)
    found = evaluating.attack_in_parts(f, images, fgm, settings, parts, "")
    fell = found["success"]
    right = found["distance"][0] > 0
    assert fell[0][right].any()
    assert not fell[1].all()
    np.testing.assert_array_equal(fell, found["distance"] <= np.c_[epsilons])
    assert np.all(np.isinf(found["distance"][~fell]))


def test_targets_are_reached_where_weighted_steps_lead_over_the_boundary(tmp_path):
    """FGM on an affine network is exact: it gains epsilon ||scale w||_1."""
    drawn = random_images(64, 4, 2)
    images = dataclasses.replace(drawn, images=100 + drawn.images // 5)
    weight = np.random.default_rng(1).normal(size=48)
    weight -= weight.mean()
    sizes, free = np.array([1.0, 3.0, 0.5]), np.arange(16).reshape(4, 4, 1) % 3 > 0
    np.save(tmp_path / "scale.npy", sizes)
    np.save(tmp_path / "mask.npy", free)
    files = (str(tmp_path / "scale.npy"), str(tmp_path / "mask.npy"))
    aims = goals.Goals("likeliest", *files, goals._read_units(*files))
    fgm = attack_specs.parse_attack("fgm")
    epsilons = [0.002, 0.02]
    settings = evaluating.Settings(
        attacks=[fgm],
        p=math.inf,
        epsilons=epsilons,
        typical_epsilon=0.02,
        batch_size=64,
        part_size=64,
        check_examples=10,
        seed=0,
        goals=aims,
    )
    f = jax.tree_util.Partial(two_classes, weight.astype(np.float32))
    assert goals.select(aims, images) is images
    found = evaluating.measure(f, images, settings, cache.Parts(tmp_path), "net")
    np.testing.assert_array_equal(found.aimed.labels, 1 - images.labels)
    x = images.images.reshape(64, -1) / 255
    towards = np.where(images.labels == 1, 1, -1) * (x @ weight)
    gain = np.abs(weight * np.broadcast_to(sizes * free, (4, 4, 3)).ravel()).sum()
    expected = [np.mean(towards + e * gain > 0) for e in (0.0, *epsilons)]
    assert 0 < expected[0] < expected[1] < expected[2]
    card = found.results["attacks"]["fgm"]
    np.testing.assert_allclose(card["mean"], expected)
    best = found.results["best_known"]["Linf"]
    np.testing.assert_allclose(best["mean"], expected)
    assert card["conditional"][0] == 0
    # The checks have no weights.
    assert found.results["checks"] == []
    told = goals.facts(aims, [found.aimed], 0)
    assert told["weights"]["free_entries"] == 3 * free.sum()
    names = {"0": int(images.labels.sum()), "1": int(64 - images.labels.sum())}
    assert told["targets"] == {"choice": "likeliest", "left_out": 0, "counts": names}
    text = " ".join(goals.as_text(told))
    assert "30 of the 48 entries" in text
    assert "with the largest logit" in text


def test_results_of_other_goals_are_kept_apart(tmp_path):
    files = [str(tmp_path / f"{number}.npy") for number in range(2)]
    for number, file in enumerate(files, start=1):
        np.save(file, np.full(3, float(number)))
    plain = goals.Goals()
    others = [goals.Goals(targets=choice) for choice in ("random", "likeliest", 0)]
    others += [
        goals.Goals(scale=file, units=goals._read_units(file, None)) for file in files
    ]
    assert (plain.key, plain.suffix) == ({}, "")
    keys = [json.dumps(each.key) for each in (plain, *others)]
    assert len(set(keys)) == len(keys)
    assert [each.suffix for each in others[2:4]] == ["_targeted", "_weighted"]


def test_images_of_the_target_class_are_left_out():
    images = random_images(10, 4, 3)
    kept = goals.select(goals.Goals(targets=2), images)
    np.testing.assert_array_equal(kept.labels, images.labels[images.labels != 2])
    assert len(kept) == len(kept.images) < 10
    with pytest.raises(ValueError, match="targets is 3; drawn has the classes 0 to 2"):
        goals.select(goals.Goals(targets=3), images)
    for text in ("-1", "cat", "1.5", ""):
        with pytest.raises(ValueError, match="number of a class from 0 on"):
            goals._read_targets(text)
    fgm, noise = map(attack_specs.parse_attack, ("fgm", "gaussian_noise"))
    attack_specs.factory(fgm, 2.0, targeted=True)
    ensemble = attack_specs.parse_attack("auto_attack")
    criterion = attack_specs.factory(ensemble, 2.0, targeted=True)(1.0).criterion
    logits = jax.numpy.array([[1.0, 1.0], [1.0, 1.0], [1.0, np.nan], [0.0, 1.0]])
    reached = criterion.success(logits, jax.numpy.array([0, 1, 0, 1]))
    assert reached.tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="gaussian_noise has no targeted version"):
        attack_specs.factory(noise, 2.0, targeted=True)


@pytest.mark.parametrize(
    ("flag", "values", "words"),
    [
        ("scale", np.array([1.0, -1.0, 1.0]), "at least 0"),
        ("scale", np.array([1.0, np.inf, 1.0]), "finite"),
        ("scale", np.array([True]), "its numbers"),
        ("scale", np.array(["a"], object), "npy file of one array"),
        ("scale", np.ones(5), r"shape \(5,\); it must broadcast .* \(4, 4, 3\)"),
        ("mask", np.ones(3), "must hold bool"),
        ("mask", np.zeros(3, bool), "an entry that is true"),
        ("mask", np.ones((2, 4, 4, 3), bool), r"broadcast against one image"),
    ],
)
def test_units_that_do_not_fit_are_refused(flag, values, words, tmp_path):
    path = str(tmp_path / "units.npy")
    np.save(path, values, allow_pickle=True)
    files = {"scale": None, "mask": None, flag: path}
    with pytest.raises(ValueError, match=f"{flag} is .*{words}"):
        goals.select(
            goals.Goals(**files, units=goals._read_units(**files)),
            random_images(2, 4, 2),
        )


def test_evaluations_of_several_seeds_are_averaged():
    def results(clean, mean, distance, passed, earlier):
        curve = {"epsilon": [0.0, 0.5], "mean": mean, "standard_error": [0.1, 0.1]}
        return {
            "clean_accuracy": clean,
            "clean_standard_error": 0.1,
            "attacks": {"pga": {**curve, "pieces": 2, "reused": len(earlier)}},
            "best_known": {
                "L2": {
                    **curve,
                    "mean_distance": distance,
                    "attacks": ["pga", *earlier],
                    "earlier_attacks": earlier,
                }
            },
            "checks": [{"name": "units", "passed": passed, "detail": f"{clean:g}"}],
        }

    one = results(0.5, [0.5, 0.1], None, True, [])
    two = results(0.7, [0.7, 0.1], 0.5, False, ["fab"])
    found = averages.over_networks([one, two], ["a", "b"])
    # The sample standard deviation of two numbers a and b is |a - b| / sqrt(2).
    assert found["clean_accuracy"] == pytest.approx(0.6)
    assert found["clean_standard_error"] == pytest.approx(0.1)
    attack, best = found["attacks"]["pga"], found["best_known"]["L2"]
    np.testing.assert_allclose(attack["mean"], [0.6, 0.1])
    np.testing.assert_allclose(attack["standard_error"], [0.1, 0.0], atol=1e-15)
    assert (attack["pieces"], attack["reused"]) == (4, 1)
    assert best["attacks"] == ["pga", "fab"]
    assert best["earlier_attacks"] == ["fab"]
    assert math.isnan(best["mean_distance"])
    (check,) = found["checks"]
    assert check == {"name": "units", "passed": False, "detail": "b: 0.7"}
    assert averages.over_networks([one], ["a"]) is one


def test_runs_are_measured_on_the_validation_split_that_they_share():
    fractions = (0.0, 0.1, 0.2)
    none, tenth, fifth = (Config(validation_fraction=each) for each in fractions)
    assert comparison.validation_fraction("validation", [tenth, tenth]) == 0.1
    assert comparison.validation_fraction("train", [tenth]) == 0
    for configs, words in (
        ([], "only a run names"),
        ([tenth, none], "trained without validation_fraction"),
        ([tenth, fifth], r"validation_fraction 0\.1, 0\.2"),
    ):
        with pytest.raises(ValueError, match=f"split is validation; .*{words}"):
            comparison.validation_fraction("validation", configs)


def test_what_an_earlier_evaluation_measured_is_said(tmp_path):
    parts = cache.Parts(tmp_path)
    key = {"identity": "net", "norm": "L2"}
    near, far = np.array([0.5, np.inf]), np.array([0.75, 1.0])
    found = evaluating.best_known(parts, key, near, ["pga"])
    np.testing.assert_array_equal(found[0], near)
    assert found[1:] == (["pga"], [])
    assert parts.reused == 0
    distance, attacks, earlier = evaluating.best_known(parts, key, far, ["deepfool"])
    np.testing.assert_array_equal(distance, [0.5, 1.0])
    assert (attacks, earlier) == (["deepfool", "pga"], ["pga"])
    card = {
        "attacks": {
            "pga": {"pieces": 3, "reused": 2},
            "deepfool": {"pieces": 3, "reused": 0},
        },
        "best_known": {"L2": {"earlier_attacks": earlier}},
    }
    assert tables.reuse_as_text(card) == [
        "reused: 2 of 3 pieces of pga were measured by an earlier evaluation",
        "reused: best known includes distances of an earlier evaluation by pga",
    ]
    fresh = cache.Parts(tmp_path, fresh=True)
    distance, *names = evaluating.best_known(fresh, key, far, ["deepfool"])
    np.testing.assert_array_equal(distance, far)
    assert names == [["deepfool"], []]


def test_networks_are_measured_on_images_that_they_take_only():
    config = Config(model="mlp1", width=8)
    objective = training.make_objective(config, 3, (4, 4, 3))
    params, batch_stats = jax.eval_shape(objective.init, jax.random.key(0))
    variables = {"params": params, "batch_stats": batch_stats}
    given = ("runs/a", config, opnorm.network(objective.module, variables))
    comparison.check_fit(*given, random_images(2, 4, 3))
    with pytest.raises(ValueError, match=r"a, trained on cifar10_mini, .* drawn") as e:
        comparison.check_fit(*given, random_images(2, 4, 5))
    assert "and 5 classes" in str(e.value)
    assert "kernel is (8, 3) there and would be (8, 5)" in str(e.value)
    with pytest.raises(ValueError, match=r"\(5, 5, 3\) and 3") as e:
        comparison.check_fit(*given, random_images(2, 5, 3))
    assert "kernel is (48, 8) there and would be (75, 8)" in str(e.value)


def test_another_job_in_a_directory_is_told_by_what_differs(tmp_path):
    configs = [Config(method="adversarial", step_size=s) for s in (0.1, math.inf)]

    def create(seeds=(0,), **changes):
        changed = [dataclasses.replace(config, **changes) for config in configs]
        return jobs.create_run_directory(tmp_path, {"seeds": list(seeds)}, changed)

    before = create().flags()
    assert [config["step_size"] for config in before["configs"]] == [0.1, "inf"]
    assert create().flags() == before
    for changes, words in (
        ({"epochs": 7, "clip_norm": 1.0}, "clip_norm is None there and 1.0 here; epo"),
        ({"step_size": 0.1}, "run: step_size is inf there and 0.1 here."),
        ({"seeds": (1,)}, r"run: seeds is \[0\] there and \[1\] here."),
    ):
        with pytest.raises(ValueError, match=words):
            create(**changes)
    # As a version would have made it that did not have the field.
    file = tmp_path / "flags.json"
    card = json.loads(file.read_text())
    for config in card["flags"]["configs"]:
        del config["cutout"]
    file.write_text(json.dumps(card))
    create()
    with pytest.raises(ValueError, match="run: cutout is 0 there and 8 here"):
        create(cutout=8)
