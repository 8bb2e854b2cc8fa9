"""experiments.spectral_normalization: the choice of the bound, and a run as a whole."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import figures as common
from experiments.spectral_normalization import (
    averages,
    figures,
    measure,
    networks,
    tables,
)
from opnorm import analysis, data, models, runs, training
from opnorm.training import Config

ERM, PGM = "farnia_cifar10_mlp1_erm", "farnia_cifar10_mlp1_pgm_l2"
KINDS = ("normalize",)
TINY = ["--dataset=cifar10_mini", "--width=8", "--train_examples=96"]
TINY += ["--batch_size=32", "--epochs=1", "--num_steps=2", "--learning_rate=1e-4"]
TINY += [f"--{name}=40" for name in ("validation_examples", "test_examples")]
TINY += ["--train_measured=40"]
TINY += [f"--presets={ERM},{PGM}", "--bounds=1,inf", f"--methods={','.join(KINDS)}"]
TINY += ["--epsilons=1,2", "--random_labels_too"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run):
    """A directory of results, and what was printed."""
    out = tmp_path_factory.mktemp("spectral_normalization")
    done = run("spectral_normalization", *TINY, f"--run={out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_committed_results_give_the_committed_tables():
    folder = Path("experiments/results/spectral_normalization")
    results = json.loads((folder / "results.json").read_text())
    assert tables.text(results) == (folder / "table.md").read_text()


def read(out):
    return json.loads((out / "results.json").read_text())


def test_every_scheme_is_trained_with_every_bound(trained):
    out, _ = trained
    results = read(out)
    names = ["none", *(f"{kind}_1" for kind in KINDS)]
    assert list(results["schemes"]) == [ERM, PGM]
    for preset, scheme in results["schemes"].items():
        assert list(scheme["networks"]) == names
        for name, network in scheme["networks"].items():
            config = training.load_run(out / preset / name).config
            # A scheme without a bound is trained without the division.
            bound = None if name == "none" else 1.0
            assert config.spectral_norm_bound == bound
            assert config.spectral_norm_method == network["method"] or bound is None
            assert (config.num_steps, config.width) == (2, 8)
            assert float(network["bound"]) == (bound or math.inf)
            for part in ("train", "validation", "test", "clean"):
                assert 0 <= network[part]["mean"] <= 1
    assert (results["validation_examples"], results["test_examples"]) == (40, 40)
    assert (results["train_examples"], results["train_measured"]) == (96, 40)
    assert results["environment"]["platform"] == "cpu"
    assert results["data"]
    assert results["seconds"] > 0
    assert "random_labels" not in results["schemes"][PGM]
    random = results["schemes"][ERM]["random_labels"]
    assert list(random) == ["none", "normalize_1"]
    assert training.load_run(out / random["none"]["run"]).config.random_labels == 1
    for name in ("accuracy", "curves", "gains", "gradient_norms", "margins"):
        assert (out / f"{name}.png").stat().st_size > 0
    for name in ("random_labels", "gain_by_network"):
        assert (out / f"{name}.png").stat().st_size > 0
    assert (out / "attack_strength.png").stat().st_size > 0


def test_bounded_layers_have_at_most_the_bound(trained):
    for scheme in read(trained[0])["schemes"].values():
        networks = scheme["networks"]
        assert max(layer["norm"] for layer in networks["none"]["layers"]) > 1.2
        for kind in KINDS:
            layers = networks[f"{kind}_1"]["layers"]
            assert len(layers) == 2
            assert all(layer["norm"] <= 1.05 for layer in layers)
            # An MLP's layers are their kernel matrices.
            for layer in layers:
                assert layer["kernel_matrix"] == pytest.approx(layer["norm"], rel=1e-4)


def test_validation_accuracy_chooses_the_bound(trained):
    out, printed = trained
    for name, scheme in read(out)["schemes"].items():
        for kind in KINDS:
            none, bounded = (
                scheme["networks"][each]["validation"]["mean"]
                for each in ("none", f"{kind}_1")
            )
            chosen = "none" if none >= bounded else f"{kind}_1"
            assert scheme["chosen"][kind] == chosen
            assert scheme["best_bounded"][kind] == f"{kind}_1"
        assert set(scheme["seconds_per_step"]) == set(scheme["networks"])
        assert scheme["seconds_per_step"]["none"]["ratio"] == 1
        best = scheme["networks"][scheme["chosen"]["normalize"]]
        row = next(
            line
            for line in printed.splitlines()
            if line.startswith(f"| {tables.label(name)} ") and "layer's norm" in line
        )
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        before, after = ("0.49", "0.53") if name == ERM else ("0.36", "0.46")
        assert cells[4] == tables.bound_label(best)
        assert cells[6].startswith(f"{100 * best['test']['mean']:.1f} ±")
        gain = best["test"]["mean"] - scheme["networks"]["none"]["test"]["mean"]
        assert float(cells[7].split(" ")[0]) == pytest.approx(100 * gain, abs=0.06)
        gain = float(after) - float(before)
        time = "1.42" if name == ERM else "1.18"
        assert cells[8] == "1"
        assert cells[10:] == [before, after, f"{gain:+.2f}", "0.8", time]


def test_ways_to_bound_have_rows_of_their_own(trained):
    results = read(trained[0])
    results["methods"] = ["normalize", "normalize_kernels"]
    for scheme in results["schemes"].values():
        other = scheme["networks"]["normalize_1"] | {"method": "normalize_kernels"}
        scheme["networks"]["normalize_kernels_1"] = other
        for choices in (scheme["chosen"], scheme["best_bounded"]):
            choices["normalize_kernels"] = "normalize_kernels_1"
        times = scheme["seconds_per_step"]
        times["normalize_kernels_1"] = times["normalize_1"]
    text = tables.text(results)
    rows = [line for line in text.splitlines() if "kernel matrix's norm" in line]
    # One of each scheme in the first two tables, one of each network in the third.
    assert len(rows) == 6
    assert all("0.49" not in row and "0.36" not in row for row in rows[:2])
    section = text.split("## Time with the layer's norm")[1].split("##")[0]
    rows = [line for line in section.splitlines() if line[:5] in ("| ERM", "| PGM")]
    # The same step against itself; the paper has no ratio for an MLP.
    assert [row.split("|")[2].strip() for row in rows] == ["1.00", "1.00"]
    assert all(row.split("|")[3].strip() == "" for row in rows)


@pytest.mark.parametrize(
    ("accuracies", "chosen", "finite"),
    [
        ({math.inf: 0.5, 1.0: 0.6, 2.0: 0.55}, 1.0, 1.0),
        ({math.inf: 0.6, 1.0: 0.5, 2.0: 0.55}, math.inf, 2.0),
        ({math.inf: 0.5, 1.0: 0.5, 2.0: 0.5}, math.inf, 2.0),
    ],
)
def test_of_equal_networks_the_least_bounded_is_chosen(accuracies, chosen, finite):
    measured = {
        f"{bound}": {
            "bound": str(bound),
            "method": None if bound == math.inf else "normalize",
            "validation": {"mean": accuracy},
        }
        for bound, accuracy in accuracies.items()
    }
    # Another way to bound has a choice of its own.
    measured["clipped"] = measured["1.0"] | {
        "method": "clip",
        "validation": {"mean": 0.9},
    }
    assert networks.choose(measured, "normalize") == str(chosen)
    assert networks.choose(measured, "normalize", finite=True) == str(finite)


def lengths(delta):
    return np.linalg.norm(np.reshape(delta, (len(delta), -1)), axis=1)


def test_numbers_are_those_of_the_attack_trained_with(trained):
    out, _ = trained
    results = read(out)
    config, f, *_ = training.load_run(out / PGM / "normalize_1")
    images = data.load("cifar10_mini", split="test", limit=80, image_size=28)
    images = images.slice(40, None)

    def normalize(z):
        return (z - jnp.array(f.module.mean)) / jnp.array(f.module.std)

    @jax.jit
    def attacked(x):
        x_adv = training.training_attack(config)(f, x, images.labels, jax.random.key(0))
        return x_adv, f(x_adv), analysis.output_gain(f, x, normalize=normalize)

    x = np.float32(images.images) / 255
    x_adv, logits, gains = map(np.asarray, attacked(x))
    assert lengths(x_adv - x).max() <= config.epsilon * 1.001
    right = logits.argmax(1) == images.labels
    scheme = results["schemes"][PGM]
    found = scheme["networks"]["normalize_1"]
    assert found["test"]["mean"] == pytest.approx(right.mean())
    assert found["correct"] == "".join(map(str, right.astype(int)))
    assert found["gains"]["mean"] == pytest.approx(gains.mean(), rel=1e-4)
    curve = scheme["strengths"]["normalize_1"][PGM]
    assert curve["length"] == [config.epsilon, 2 * config.epsilon]
    assert curve["mean"][0] == found["test"]["mean"]
    # ERM has no attack, and is measured under that of the other scheme.
    erm = results["schemes"][ERM]
    none = erm["networks"]["none"]
    assert none["test"] == pytest.approx(none["clean"])
    assert list(erm["strengths"]["none"]) == [PGM]
    assert found["capacity"]["scheme"] == "pgm"
    assert 0 < found["kappa"] <= found["gradient_norms"]["percentiles"][0] * 1.0001


def test_networks_of_other_seeds_are_missing_until_they_are_trained(
    trained, run, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    flags = [*TINY, f"--presets={PGM}", "--norandom_labels_too", "--seeds=1,0"]
    done = run("spectral_normalization", *flags, "--notrain", f"--run={out}")
    assert done.returncode == 0, done.stderr
    before, after = (read(folder)["schemes"][PGM] for folder in (trained[0], out))
    for name, network in after["networks"].items():
        assert list(network["seeds"]) == ["1", "0"]
        # The run of an earlier call is that of its seed.
        assert network["seeds"]["0"] == {
            part: value
            for part, value in before["networks"][name].items()
            if part not in ("bound", "method")
        }
        assert network["seeds"]["1"] is None
        assert list(network["missing"]) == ["1"]
        assert network["test"]["mean"] == before["networks"][name]["test"]["mean"]
        # One network has no error over networks.
        assert network["test"]["standard_error"] is None
    assert after["chosen"] == before["chosen"]
    assert "1 of 2" in done.stdout
    assert "## Missing networks" in done.stdout
    assert len(list(out.rglob("*-seed1"))) == 0
    both = run("spectral_normalization", *flags, "--seed=3", f"--run={out}")
    assert both.returncode == 2
    assert "seed and seeds are both given" in both.stderr


@pytest.fixture(scope="module")
def several():
    """Results of two seeds, made of committed ones, with missing networks."""
    folder = Path("experiments/results/spectral_normalization")
    results = json.loads((folder / "results.json").read_text())
    results["seeds"], results["controls"] = [0, 1], ["weight_decay"]
    schemes = {name: results["schemes"][name] for name in (ERM, PGM)}
    results["schemes"] = schemes
    for name, scheme in schemes.items():
        kept = {"none", *scheme["chosen"].values(), *scheme["best_bounded"].values()}
        scheme["networks"] = {
            each: two_seeds(scheme["networks"][each]) for each in sorted(kept)
        }
        scheme["networks"]["weight_decay"] = averages.combine(
            {0: None, 1: None},
            {0: "lost", 1: "lost"},
            {"method": "weight_decay", "bound": "inf"},
        )
        for curve in scheme["strengths"]["none"].values():
            curve["standard_error"] = [None] * len(curve["mean"])
        if name == PGM:
            scheme["random_labels"] = {"none": scheme["networks"]["none"]}
    return results


def two_seeds(network):
    other = json.loads(json.dumps(network))
    other["test"]["mean"] += 0.1
    other["layers"][0]["norm"] = 10.0
    other["training"]["accuracy"] = [0.5 * a for a in network["training"]["accuracy"]]
    origin = {part: network[part] for part in ("bound", "method")}
    found = averages.combine({0: network, 1: other}, {}, origin)
    return json.loads(json.dumps(found))


def test_tables_of_several_seeds_say_over_how_many_networks_they_are(several):
    text = tables.text({**several, "validation_fraction": 0.1})
    assert "chosen by 500 images held out of the training, reported on 500 t" in text
    assert "over networks of the seeds 0, 1" in text
    without = several["schemes"][ERM]["networks"]["none"]
    mean = 100 * (without["seeds"]["0"]["test"]["mean"] + 0.05)
    # The mean of a and a + 10 has the standard error 5.
    assert f"{mean:.1f} ± 5.0 %" in text
    ways = text.split("## Other ways to regularise")[1].split("##")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in ways.splitlines()
    ]
    lost = [row[2:] for row in rows if row[1:2] == ["weight decay"]]
    assert lost == 2 * [["0 of 2", "-", "-", "-", "-", "", ""]]
    networks = text.split("## All networks")[1]
    smaller = max(layer["norm"] for layer in without["seeds"]["0"]["layers"])
    assert f"{(10 + smaller) / 2:.3g} ± {(10 - smaller) / 2:.3g}" in networks
    assert text.count("| lost ") == 4


def test_figures_of_several_seeds_say_what_bands_are(several, tmp_path):
    drawn = {}
    for name, figure in figures.draw(several, [several]):
        drawn[name] = " ".join(figure.get_suptitle().split())
        common.pyplot().close(figure)
    assert {"curves", "random_labels", "regularised_pgm_l2", "margins"} <= set(drawn)
    for name, title in drawn.items():
        kind = "bars" if name == "attack_strength" else "bands"
        expected = f"{kind}: standard error over 2 networks each"
        if name == "gain_by_network":
            expected = "bars: standard error over what the legend names"
        assert title.endswith(expected), name
    with pytest.raises(ValueError, match=r"others has .*results.json cannot be read"):
        figures.read_results(str(tmp_path))


def test_averages_over_networks_have_errors_over_networks():
    def network(mean, correct):
        return {
            "test": {"mean": mean, "standard_error": 0.3},
            "correct": correct,
            **dict.fromkeys(("train", "validation", "clean")),
        }

    one = averages.combine({0: network(0.5, "01")}, {}, {"bound": 1.0})
    assert one == {"bound": 1.0, **network(0.5, "01")}
    assert averages.over(one, lambda each: each["test"])["standard_error"] == 0.3
    # The differences by image are 1 and 0.
    found = averages.gain(one, network(1.0, "11"))
    assert found == {"mean": 50.0, "standard_error": pytest.approx(50.0)}
    before, after = (
        averages.combine(
            {0: network(a, ""), 1: network(b, ""), 2: None}, {2: "lost"}, {}
        )
        for a, b in ((0.5, 0.7), (0.6, 1.0))
    )
    assert before["test"] == {
        "mean": pytest.approx(0.6),
        "standard_error": pytest.approx(0.1),
        "networks": 2,
        "over": "networks",
    }
    assert averages.count(before) == "2 of 3"
    # The differences by seed are 10 and 30 points.
    gain = averages.gain(before, after)
    assert gain == {"mean": pytest.approx(20), "standard_error": pytest.approx(10)}
    curve = averages.curves(
        [
            {"step": [1, 2], "accuracy": [0.0, 1.0]},
            {"step": [1, 2, 3], "accuracy": [1.0, 1.0, 0.0]},
        ]
    )
    assert curve == {"step": [1, 2], "mean": [0.5, 1.0], "standard_error": [0.5, 0.0]}


def test_each_seed_has_a_directory_of_its_own(tmp_path):
    def places(seeds):
        found = networks.planned(
            Config(), (math.inf, 1.0), KINDS, tmp_path, seeds=seeds
        )
        return {seed: each.directory.name for seed, each in found["none"].items()}

    assert places(()) == {0: "none"}
    assert places((1, 0)) == {1: "none-seed1", 0: "none"}
    # The place without a seed belongs to the run that an earlier version left there.
    other = dataclasses.asdict(dataclasses.replace(Config(), seed=5))
    runs.RunDirectory.create(tmp_path / "none", other)
    assert places((0, 5)) == {0: "none-seed0", 5: "none"}


@pytest.mark.parametrize(
    ("method", "metric", "accuracies"),
    [
        ("adversarial_only", "validation_pga_accuracy", [0.25, 0.375]),
        ("standard", "validation_accuracy", [0.5, 0.75]),
        ("wrm", "validation_accuracy", [0.5, 0.75]),
    ],
)
def test_curves_have_the_validation_accuracy_of_their_method(
    method, metric, accuracies, tmp_path
):
    run = runs.RunDirectory.create(tmp_path, {"method": method})
    run.log(1, epoch=0.5, accuracy=0.2)
    for step, clean in ((2, 0.5), (4, 0.75)):
        found = {"validation_accuracy": clean, "validation_pga_accuracy": clean / 2}
        run.log(step, epoch=step / 2, accuracy=0.4, **found)
    curve = networks.training_curve(tmp_path)
    assert curve["step"] == [2, 4]
    assert curve["accuracy"] == pytest.approx([0.3, 0.4])
    held_out = {"metric": metric, "step": [2, 4], "accuracy": accuracies}
    assert curve["validation"] == held_out


def test_controls_change_one_thing(tmp_path):
    scheme = Config(model="alexnet", augment=False)
    found = networks.planned(
        scheme, (math.inf, 1.0), KINDS, tmp_path, controls=list(networks.CONTROLS)
    )
    models_ = {
        name: models.create(each[0].config.model, dropout=each[0].config.dropout)
        for name, each in found.items()
    }
    plain = models.AlexNet()
    assert models_["none"] == models_["weight_decay"] == plain
    assert models_["batch_norm"] == plain.clone(batch_norm=True)
    assert models_["no_lrn"] == plain.clone(response_normalization=False)
    assert models_["dropout"] == plain.clone(dropout=0.2)
    config = found["weight_decay"][0].config
    assert (config.weight_decay, config.decayed) == (5e-4, "kernels_and_scales")
    for scheme, controls, message in (
        (Config(), ["batch_norm"], "controls has batch_norm, a variant of alexnet"),
        (Config(), ["magic"], r"controls is \['magic'\]; give some of batch_norm"),
        (
            dataclasses.replace(config, spectral_norm_bound=None),
            ["weight_decay"],
            r"weight_decay, which all networks have: weight_decay is 0\.0005",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            networks.planned(
                scheme, (math.inf, 1.0), KINDS, tmp_path, controls=controls
            )


def test_a_run_that_is_there_is_not_trained_again(trained, run):
    out, _ = trained
    before = read(out)
    times = {file: file.stat().st_mtime_ns for file in out.rglob("checkpoints/*/*")}
    one = [*TINY, f"--presets={ERM}", "--norandom_labels_too"]
    again = run("spectral_normalization", *one, f"--run={out}")
    assert again.returncode == 0, again.stderr
    assert times == {
        file: file.stat().st_mtime_ns for file in out.rglob("checkpoints/*/*")
    }
    assert ": step " not in again.stderr
    assert again.stderr.count("is taken from an earlier measurement") == 3
    after = read(out)["schemes"][ERM]
    assert list(after["networks"]) == ["none", "normalize_1"]
    for name, network in after["networks"].items():
        assert network == before["schemes"][ERM]["networks"][name]
    # Alone it has no attack to be measured under.
    assert after["strengths"] == {"none": {}, "normalize_1": {}}


@pytest.mark.parametrize(
    ("bounds", "kinds", "message"),
    [
        ((1.0, 2.0), KINDS, r"bounds is \['1', '2'\]; give inf"),
        ((math.inf,), KINDS, r"bounds is \['inf'\]; give inf"),
        ((math.inf, -1.0), KINDS, "each must be positive"),
        ((math.inf, 1.0), ("magic",), r"methods is \['magic'\]; give some of normal"),
    ],
)
def test_bounds_and_ways_that_are_none_are_refused(bounds, kinds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        networks.planned(Config(), bounds, kinds, tmp_path)


def test_schemes_must_share_their_network():
    with pytest.raises(
        ValueError, match="model is mlp1 in the first and mlp in farnia"
    ):
        networks.schemes([ERM, "farnia_cifar10_mlp2_erm"], {})
    found = networks.schemes([ERM, "farnia_cifar10_mlp2_erm"], {"model": "mlp"})
    assert {config.model for config in found.values()} == {"mlp"}


def test_validation_images_are_the_first_and_others_report():
    images = data.Dataset(
        np.arange(20, dtype=np.uint8)[:, None, None, None],
        np.zeros(20, np.int32),
        ("a",),
        "counted",
        "counted images",
    )
    found = measure.divide(images, images, train=30, validation=5)
    assert [len(part) for part in found] == [20, 5, 15]
    assert found.validation.images.max() < found.test.images.min()
    with pytest.raises(ValueError, match="validation_examples is 19; of the 20 test"):
        measure.divide(images, images, train=30, validation=19)


def test_usage_errors_come_before_any_run(run, tmp_path):
    out = tmp_path / "out"
    done = run("spectral_normalization", *TINY, "--epsilons=0,1", f"--run={out}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "epsilons is ['0', '1']; each must be positive" in done.stderr
    assert not out.exists()


def test_another_run_in_its_place_is_an_error_before_any_is_trained(trained, run):
    out, _ = trained
    flags = [*TINY, "--epochs=3", "--bounds=inf,1,7", f"--run={out}"]
    done = run("spectral_normalization", *flags)
    assert done.returncode == 2
    assert "holds another run: epochs is 1 there and 3 here" in done.stderr
    assert not list(out.rglob("normalize_7"))


def test_strength_multiplies_lengths_and_divides_the_price():
    weight = np.array([[1.0, -1.0], [2.0, 0.5], [-0.5, 1.0]], np.float32)
    x = np.array([[0.4, 0.5, 0.6], [0.5, 0.4, 0.55]], np.float32)
    labels = np.array([0, 1])

    def distances(config, *strengths):
        perturb = jax.jit(
            lambda x, strength: training.training_attack(config, strength=strength)(
                lambda z: z @ weight, x, labels, jax.random.key(0)
            )
        )
        return [lengths(perturb(x, strength) - x) for strength in strengths]

    pgm = Config(
        method="adversarial_only",
        epsilon=0.1,
        num_steps=1,
        step_size=0.1,
        random_start=False,
        attack_labels="predicted",
    )
    strengths = (0.5, 1.0, 2.0)
    for strength, found in zip(strengths, distances(pgm, *strengths), strict=True):
        np.testing.assert_allclose(found, 0.1 * strength, rtol=1e-4)
        assert measure.length(pgm, strength) == pytest.approx(0.1 * strength)
    wrm = Config(method="wrm", gamma=50.0, num_steps=15)
    once, twice = distances(wrm, 1.0, 2.0)
    np.testing.assert_allclose(twice / once, 2.0, rtol=0.05)
    assert measure.length(wrm, 2.0) == pytest.approx(0.02)
