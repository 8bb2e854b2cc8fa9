"""A paper's table from its presets, at a tiny size."""

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments.common import figures
from experiments.reproduce import claims, matching, networks, summary, tables
from experiments.reproduce.matching import Limits, Trial
from opnorm import runs, training

TINY = [
    "--dataset=cifar10_mini",
    "--model=mlp1",
    "--width=8",
    "--train_examples=48",
    "--batch_size=16",
    "--standard_epochs=2",
    "--epochs=1",
    "--test_examples=20",
    "--test_steps=1",
    "--l2_epsilons=0.5",
    "--linf_epsilons=0.01",
    "--validation_fraction=0.02",
]
GLOBAL = "--presets=roth_cnn7_standard,roth_cnn7_global_snr"
PRESETS = (
    "roth_cnn7_standard",
    "roth_cnn7_standard_continued",
    "roth_cnn7_at_l2",
    "roth_cnn7_snr",
)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The directory of a job of one seed, without --seeds."""
    folder = tmp_path_factory.mktemp("reproduce")
    done = run("reproduce", *TINY, "--iterations", "--examples=4", f"--run={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_one_iteration_against_ten(folder):
    results = json.loads((folder / "iterations.json").read_text())
    rows = results["rows"]
    assert list(rows) == ["roth_cnn7_global_snr", "roth_cnn7_global_snr_10"]
    for row in rows.values():
        for kind in ("random", "adversarial"):
            # Nothing deviates at length 0; the box may shorten perturbations.
            assert row[kind]["deviation"]["mean"][0] == 0
            none, length = row[kind]["length"]["mean"]
            assert none == 0
            assert 0.45 < length < 0.5 + 1e-5
        assert row["random"]["sigma"]["mean"][0] == pytest.approx(
            row["adversarial"]["sigma"]["mean"][0], rel=1e-4
        )
        assert row["accuracy"]["over"] == "examples"
        (aligned,) = row["alignment"]["mean"]
        assert 0 <= aligned <= 1
    for name in ("figure_10.png", "figure_11.png", "iterations.md"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "results.json").exists()


def test_seeds_lambda_and_autoattack(start, folder):
    names = [name for name in PRESETS if name != "roth_cnn7_standard_continued"]
    old = json.loads((folder / "roth_cnn7_standard" / "accuracies.json").read_text())
    process = start(
        "reproduce",
        *TINY,
        f"--presets={','.join(names)}",
        "--seeds=1,0",
        "--match=roth_cnn7_snr",
        "--match_networks=1",
        "--auto_attack_examples=4",
        f"--run={folder}",
        # The ensemble takes long to compile.
        constants={"experiments.reproduce.measure": {"AUTO_ATTACK": "fgm"}},
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    results = json.loads((folder / "results.json").read_text())
    rows = results["rows"]
    assert list(rows) == [*names, "roth_cnn7_snr_matched"]
    # The network of the first command is found, and measured no second time.
    standard = rows["roth_cnn7_standard"]
    assert [each["run"] for each in standard["networks"]] == [
        str(folder / "roth_cnn7_standard-seed1"),
        str(folder / "roth_cnn7_standard"),
    ]
    assert standard["networks"][1]["accuracy"] == old["accuracy"]
    means = [each["accuracy"]["L2"]["mean"] for each in standard["networks"]]
    curve = standard["accuracy"]["L2"]
    np.testing.assert_allclose(curve["mean"], np.mean(means, axis=0))
    np.testing.assert_allclose(
        curve["standard_error"], np.std(means, axis=0, ddof=1) / math.sqrt(2)
    )
    for name, row in rows.items():
        assert len(row["networks"]) == 2
        assert row["auto_attack"]["L2"]["over"] == "networks"
        assert row["networks"][1]["auto_attack"]["L2"]["examples"] == 4
        for norm, epsilon in (("L2", 0.5), ("Linf", 0.01)):
            curve = row["accuracy"][norm]
            assert (curve["epsilon"], curve["over"]) == ([0.0, epsilon], "networks")
            clean, attacked = curve["mean"]
            assert 0 <= attacked <= clean + 1e-9
        # Each network starts from that of its seed.
        first = name == "roth_cnn7_standard"
        start_from = None if first else standard["networks"][0]["run"]
        assert row["config"]["init_from"] == start_from
        # Flags replace values of presets, and nothing else.
        assert row["steps"] == (6 if first else 3)
        assert row["config"]["optimizer"] == ("adam" if first else "rmsprop")
    (search,) = results["matching"]
    assert (search["row"], search["reference"]) == ("roth_cnn7_snr", "roth_cnn7_at_l2")
    assert search["seed"] == 1
    assert search["trials"][0]["weight"] == rows["roth_cnn7_snr"]["config"]["weight"]
    assert rows["roth_cnn7_snr_matched"]["config"]["weight"] == search["chosen"]
    assert search["examples"] > 100
    assert {(v["row"], v["attack"]) for v in results["verdicts"]} == {
        (row, f"{attack} L2")
        for row in ("roth_cnn7_snr", "roth_cnn7_snr_matched")
        for attack in ("PGA-1", "AutoAttack")
    }
    assert (folder / "table.md").read_text() == tables.text(results)
    for name in ("accuracy_L2.png", "accuracy_Linf.png"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--presets=roth_cnn8_standard"], "preset 'roth_cnn8_standard'"),
        # Rows are trained on the same images.
        (
            ["--presets=roth_cnn7_standard,farnia_cifar10_mlp1_erm"],
            "image_size is None in the first and 28 in farnia",
        ),
        ([GLOBAL, "--seeds=1", "--seed=1"], "seed and seeds are both given"),
        (
            [GLOBAL, "--match=roth_cnn7_global_snr"],
            "presets a row of adversarial training in its norm",
        ),
        (
            ["--match=roth_cnn7_snr", "--validation_fraction=0"],
            "validation_fraction is 0",
        ),
    ],
)
def test_usage_errors_come_before_any_run(run, tmp_path, flags, message):
    done = run("reproduce", *TINY, *flags, f"--run={tmp_path / 'run'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_runs_of_one_seed_are_found_by_those_of_several(tmp_path):
    def find(seed, several):
        return networks.find_directory(tmp_path, "row", seed, several)

    assert find(0, False) == tmp_path / "row"
    assert find(0, True) == tmp_path / "row-seed0"
    runs.RunDirectory.create(tmp_path / "row", {"seed": 2})
    assert [find(seed, True).name for seed in (0, 2)] == ["row-seed0", "row"]
    runs.RunDirectory.create(tmp_path / "row-seed0", {"seed": 0})
    assert [find(seed, False).name for seed in (0, 2, 3)] == ["row-seed0", "row", "row"]


def clean(weight):
    """A clean accuracy that falls with lambda as the logarithm."""
    return 0.5 - 0.1 * math.log10(weight)


def trial(weight):
    return Trial(weight, clean(weight), 0.01, 0.1 + 0.01 * weight, 0.01)


@pytest.mark.parametrize("target", [0.321, 0.452, 0.5, 0.639, 0.87])
def test_lambda_is_found_by_bisection_of_its_logarithm(target):
    # 0.5 - 0.1 log10(weight) = target
    exact = 10 ** ((0.5 - target) / 0.1)
    trials = matching.search(trial, target, 0.03, Limits(0.002, 20))
    chosen = matching.choose(trials, target, 0.002)
    # The tolerance of the accuracy is a factor 10 ** 0.02 of lambda.
    assert abs(math.log10(chosen.weight / exact)) <= 0.02 + 1e-9
    # From 0.03 in steps of a decade, then a decade halved to less than 0.04.
    decades = abs(math.log10(exact / 0.03))
    assert len(trials) <= 2 + math.ceil(decades) + math.ceil(math.log2(1 / 0.04))
    weights = [each.weight for each in trials]
    assert len(set(weights)) == len(weights)


def test_a_lambda_that_costs_nothing_does_not_end_the_search():
    def flat(weight):
        return trial(weight)._replace(clean=min(0.5, clean(weight)))

    trials = matching.search(flat, 0.5, 0.03, Limits(0.01, 8))
    chosen = matching.choose(trials, 0.5, 0.01)
    # At 10 ** 0.1 the accuracy is one point less; the next lambda is at most half more.
    assert 10**0.1 / 1.5 <= chosen.weight <= 10**0.1 + 1e-3


def test_the_search_ends_and_says_that_lambda_is_not_matched():
    limits = Limits(0.002, 3)
    trials = matching.search(trial, 0.321, 0.03, limits)
    assert [each.weight for each in trials] == [0.03, 0.3, 3.0]
    target = {"clean": 0.321, "attacked": 0.2}
    found = matching.record(trials, target, limits, row="snr")
    assert (found["chosen"], found["matched"], found["row"]) == (3.0, False, "snr")


def test_training_that_fails_has_too_large_a_lambda():
    def fail_above(weight):
        return Trial(weight, None) if weight > 0.1 else trial(weight)

    trials = matching.search(fail_above, 0.62, 0.03, Limits(0.01, 8))
    assert [each.weight for each in trials[:3]] == [0.03, 0.3, 0.0949]
    assert matching.choose(trials, 0.62, 0.01).weight < 0.1
    assert matching.choose([Trial(1.0, None)], 0.62, 0.01) is None


def test_the_most_robust_network_at_the_target_is_chosen():
    trials = [
        Trial(0.1, 0.605, 0.01, 0.30, 0.01),
        Trial(0.2, 0.595, 0.01, 0.35, 0.01),
        Trial(0.3, 0.580, 0.01, 0.40, 0.01),
    ]
    assert matching.choose(trials, 0.6, 0.01).weight == 0.2
    assert matching.choose(trials, 0.6, 0.001).weight in (0.1, 0.2)


def measured(seed, mean):
    curve = {"epsilon": [0.0, 0.5, 1.0], "mean": mean, "standard_error": [0.01] * 3}
    return {"seed": seed, "accuracy": {"L2": curve}, "auto_attack": {}}


def test_differences_are_paired_by_seed():
    row = [measured(0, [0.6, 0.4, 0.2]), measured(1, [0.7, 0.5, 0.3])]
    other = [
        measured(2, [0, 0, 0]),
        measured(1, [0.6, 0.5, 0.2]),
        measured(0, [0.6, 0.38, 0.3]),
    ]
    found = claims.difference(row, other, "accuracy", "L2")
    pairs = np.array([[0.0, 0.02, -0.1], [0.1, 0.0, 0.1]])
    np.testing.assert_allclose(found["mean"], pairs.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(
        found["standard_error"], pairs.std(axis=0, ddof=1) / math.sqrt(2), atol=1e-12
    )
    np.testing.assert_allclose(found["larger"], [0.65, 0.45, 0.3], atol=1e-12)
    one = claims.difference(row[:1], other, "accuracy", "L2")
    assert one["over"] == "examples"
    np.testing.assert_allclose(one["standard_error"], 0.01 * math.sqrt(2))
    assert claims.difference(row, other, "auto_attack", "L2") is None


@pytest.mark.parametrize(
    ("mean", "error", "verdict"),
    [
        ([0.20, 0.01, -0.02, 0.5], 0.004, "yes"),
        ([0.20, 0.01, -0.02, 0.5], 0.006, "yes, within error"),
        # 0.47 - 0.5 is a little less than -0.03 in float64.
        ([0.00, 0.01, 0.47 - 0.5, 0.0], 0.0, "yes"),
        ([0.00, 0.01, -0.05, 0.0], 0.011, "no, within error"),
        ([0.00, 0.01, -0.05, 0.0], 0.009, "no"),
    ],
)
def test_verdicts_are_of_the_lengths_up_to_the_trainings(mean, error, verdict):
    found = {
        "epsilon": [0.0, 0.25, 0.5, 1.0],
        "mean": mean,
        "standard_error": [error] * 4,
        "larger": [0.7, 0.5, 0.4, 0.3],
        "networks": 3,
        "over": "networks",
    }
    judged = claims.judge(found, 0.5)
    assert judged["verdict"] == verdict
    assert (judged["epsilon"], judged["largest"]["mean"]) == (0.5, mean[2])
    assert judged["clean"]["mean"] == mean[0]
    assert claims.judge(found, 0.1)["verdict"] is None
    # An error that is not known decides nothing.
    unknown = {**found, "standard_error": [None] * 4}
    assert claims.judge(unknown, 0.5)["verdict"].endswith(", within error")
    # Networks without accuracy are no evidence that methods are alike.
    fallen = {**found, "larger": [0.7, 0.02, 0.02, 0.0]}
    assert claims.judge(fallen, 0.5)["verdict"] == "open: both fall"
    half = {**found, "larger": [0.7, 0.5, 0.02, 0.0]}
    assert claims.judge(half, 0.5)["epsilon"] == 0.25


def test_networks_that_are_not_there_are_missing_in_the_tables():
    plan = networks.Plan(
        folder=runs.RunDirectory("runs/none").path,
        first=PRESETS[0],
        seeds=(0, 1),
        several=True,
        changes={},
        first_epochs=None,
    )
    rows = [plan.row(preset) for preset in PRESETS]
    assert networks.control(rows[2], rows) == rows[1]
    assert networks.reference(rows[3], rows) == rows[2]
    assert networks.reference(rows[2], rows) is None
    one = {**measured(0, [0.6, 0.4, 0.2]), "run": "", "steps": 1}
    matched = plan.row(PRESETS[3], 0.3)
    assert matched.name == "roth_cnn7_snr_matched"
    assert [each.directory.name for each in matched.networks] == [
        *("roth_cnn7_snr-weight0.3-seed0", "roth_cnn7_snr-weight0.3-seed1")
    ]
    assert matched.networks[1].config == dataclasses.replace(
        rows[3].networks[1].config, weight=0.3
    )
    # The preset's own lambda needs no further network.
    assert plan.row(PRESETS[3], 0.03).networks == rows[3].networks
    several = {PRESETS[1]: [one], PRESETS[3]: [{**one, "seed": 0}]}
    (control,) = summary.summarize(rows, several, 10)["controls"]
    assert (control["row"], control["control"]) == (PRESETS[3], PRESETS[1])
    assert control["difference"]["mean"] == 0
    found = summary.summarize(rows, {PRESETS[0]: [one]}, 10)
    facts = {
        "data": "d",
        "train_examples": 1,
        "test_examples": 1,
        "auto_attack_examples": 0,
        "matching": [],
    }
    lines = tables.text(found | facts).splitlines()
    (first,) = (line for line in lines if line.startswith("| cnn7 standard  "))
    (missing,) = (line for line in lines if line.startswith("| cnn7 snr "))
    assert [cell.strip() for cell in first.split("|")[2:5]] == ["1 of 2", "-", "60.0 %"]
    assert [cell.strip() for cell in missing.split("|")[2:8]] == [
        *("0 of 2", "0.03", "-", "84.6 %", "-", "-")
    ]
    alone = tables.text(found | facts | {"seeds": [0]})
    assert "up to 1.0 points; errors over networks are not known" in alone
    names = networks.titles({row.name: dataclasses.asdict(row.config) for row in rows})
    assert list(names.values()) == [
        *("standard", "standard (trained on)", "adversarial", "data_dependent_snr")
    ]
    assert all(training.get_preset(row.preset).name == row.preset for row in rows)


def test_networks_of_one_method_share_its_colour():
    names = ["adversarial (L2)", "standard", "adversarial (Linf)", "of another kind"]
    styles = figures.styles(names)
    assert set(styles) == set(names)
    looks = {(s["color"], s["marker"], s["linestyle"]) for s in styles.values()}
    assert len(looks) == len(names)
    own = figures.STYLES["adversarial"][0]
    assert {styles[names[0]]["color"], styles[names[2]]["color"]} == {own}
    assert styles[names[3]]["color"] != own
    # More than four of one method take further colours.
    many = [f"standard ({place})" for place in range(6)]
    looks = {(s["color"], s["marker"]) for s in figures.styles(many).values()}
    assert len(looks) == len(many)


def test_titles_say_what_bands_are():
    assert "over 3 networks" in figures.bands("networks", 3)
    assert "over 2 to 3 networks" in figures.bands("networks", 2, 3)
    assert "over 500 images" in figures.bands("examples", 500)
    assert "over the images of the panel" in figures.bands("examples", None)
