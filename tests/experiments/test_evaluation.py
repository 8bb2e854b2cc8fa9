"""Evaluations and jobs of several networks: files that they read, merge or refuse."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import opnorm
from experiments.common import attack_specs, cache, comparison, jobs
from experiments.evaluate import measure as evaluating
from experiments.evaluate import tables
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


def test_what_an_earlier_evaluation_measured_is_said(tmp_path):
    parts = cache.Parts(tmp_path)
    key = {"identity": "net", "norm": "L2"}
    near, far = np.array([0.5, np.inf]), np.array([0.75, 1.0])
    found = evaluating.best_known(parts, key, near, ["pga"])
    np.testing.assert_array_equal(found[0], near)
    assert found[1:] == (["pga"], [])
    assert parts.reused == 0
    distance, attacks, earlier = evaluating.best_known(
        parts, key, far, ["deepfool"]
    )
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
