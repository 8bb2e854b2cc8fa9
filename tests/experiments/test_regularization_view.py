"""experiments.regularization_view: rows, tables, claims, and a run as a whole."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.regularization_view import claims, measure, networks, summary, tables
from experiments.regularization_view.networks import FGSM, PGD, STANDARD, Row, Trained
from opnorm import data, runs, training
from opnorm.training import Config

TINY = ["--dataset=cifar10_mini", "--train_examples=32", "--batch_size=16"]
TINY += ["--model=mlp1", "--depth=none", "--width=4", "--noaugment", "--epochs=1"]
TINY += ["--num_steps=2", "--strengths=8"]
MEASURED = [f"--{name}=20" for name in ("train_measured", "test_examples")]
MEASURED += ["--test_steps=1", "--variation_levels=2", "--boundary_examples=4"]
BASE = Config(model="fixup56", width=8, epochs=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run):
    """A directory of results, and the process that wrote it."""
    out = tmp_path_factory.mktemp("regularization_view")
    done = run("regularization_view", "--train", *TINY, *MEASURED, f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out, done


def read(out):
    return json.loads((out / "results.json").read_text())


def test_a_network_is_trained_and_measured(trained):
    out, done = trained
    results = read(out)
    assert [row["name"] for row in results["rows"]] == ["pgd8"]
    config, f, *_ = training.load_run(out / "networks" / "pgd8-seed0")
    assert (config.method, config.p) == ("adversarial_only", math.inf)
    assert config.epsilon == pytest.approx(8 / 255)
    # Numbers are those of the network, computed apart.
    test = data.load("cifar10_mini", split="test", limit=20)
    logits = np.float64(f(np.float32(test.images) / 255))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    (network,) = results["rows"][0]["networks"]
    loss = -log_p[np.arange(20), test.labels].mean()
    assert network["test_loss"] == pytest.approx(loss, rel=1e-5)
    error = np.mean(logits.argmax(axis=1) != test.labels)
    assert network["test_error"] == pytest.approx(error)
    assert network["robust"] <= network["test_accuracy"]
    assert network["variation_2"] >= 0
    # No network here was trained with FGSM.
    for number in (1, *range(3, 9), 11):
        assert (out / f"figure_{number:02d}.png").stat().st_size > 0
    assert done.stdout.startswith((out / "tables.md").read_text().rstrip())


def test_given_runs_have_the_rows_of_those_trained(trained):
    out, _ = trained
    found = networks.given([str(run) for run in sorted(out.glob("networks/*"))])
    assert [each.row for each in found] == [Row("", PGD, 8.0, None, None)]
    # Measurements of a network are kept under what decides them.
    assert len(list(out.glob("measured/*.npz"))) == 5 * len(found)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "run is not given; give runs to measure, or --train"),
        (["--run=a", "--strengths=4"], "strengths is ['4']; it is of networks"),
        (["--train", "--variation_levels=0"], "variation_levels is ['0']; each"),
    ],
)
def test_usage_errors_are_one_line_before_any_run(flags, message, run, tmp_path):
    out = tmp_path / "out"
    done = run("regularization_view", *flags, f"--out={out}")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"levels": [4.0, 4.0]}, r"strengths is \[4.0, 4.0\]; give one or more"),
        ({"levels": [-1.0]}, r"strengths is \[-1.0\]; each must be finite"),
        ({"bounds": [0.0]}, r"clips is \[0.0\]; each must be positive"),
        ({"fgsm_seeds": [1, 1]}, r"fgsm_seeds is \[1, 1\]; give one or more"),
    ],
)
def test_lists_that_choose_no_networks_are_refused(lists, message):
    with pytest.raises(ValueError, match=message):
        planned(**lists)


def planned(**changes):
    given = {"bounds": [3.0, 1.0], "bound_seeds": [7], "fgsm_seeds": [8]}
    given |= {"clipping": "clip", "levels": [16.0, 0.0], "seeds": [0, 1]}
    return networks.planned(BASE, folder=Path("runs"), **given | changes)


def test_the_first_seed_of_every_strength_is_trained_first():
    chosen = planned()
    assert [each.directory.name for each in chosen] == [
        *("standard-seed0", "pgd16-seed0", "standard-seed1", "pgd16-seed1"),
        *("pgd16_clip3-seed7", "pgd16_clip1-seed7", "fgsm16-seed8"),
    ]
    standard, pgd, *_, clipped, fgsm = (each.config for each in chosen)
    assert standard == dataclasses.replace(BASE, p=standard.p)
    assert (pgd.epsilon, pgd.num_steps, pgd.random_start) == (16 / 255, 10, True)
    assert (clipped.spectral_norm_bound, clipped.spectral_norm_method) == (1, "clip")
    assert (fgsm.step_size, fgsm.num_steps) == (fgsm.epsilon, 1)
    assert not fgsm.random_start


def test_rows_are_read_from_configurations(monkeypatch):
    chosen = planned()
    configs = {str(each.directory): each.config for each in chosen}
    configs["deep"] = dataclasses.replace(configs["runs/pgd16-seed0"], model="fixup110")
    add(monkeypatch, configs)
    found = networks.given(list(configs))
    assert [each.row._replace(recipe="") for each in found[:-1]] == [
        each.row for each in chosen
    ]
    assert {each.row.recipe for each in found[:-1]} == {"fixup56"}
    assert found[-1].row == Row("fixup110", PGD, 16.0, None, None)
    assert networks.paper_names(found[-1].config) == ("cifar10", "resnet110")


def add(monkeypatch, configs):
    """Makes runs of configurations without networks."""
    monkeypatch.setattr(
        training, "load_run", lambda path: training.Run(configs[path], None, 1, {})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "adversarial"}, "method=adversarial and p=inf; it must be"),
        ({"p": 2.0}, "method=adversarial_only and p=2; it must be standard"),
        ({"spectral_norm_bound": 1.0}, "spectral_norm_method=normalize; it may be"),
        ({"num_steps": 7, "seed": 1}, "num_steps is 10 there and 7 here"),
        ({"data_dir": "elsewhere"}, "one and other are of the same network"),
        (
            {"epsilon_unit": "standardized", "epsilon": 0.1},
            "units, pixels in one, standardized in other",
        ),
    ],
)
def test_runs_without_a_place_in_the_tables_are_refused(changes, message, monkeypatch):
    pgd = planned()[1].config
    add(monkeypatch, {"one": pgd, "other": dataclasses.replace(pgd, **changes)})
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        networks.given(["one", "other"])


def measured(*, correct, loss, robust, rise, spread, margin):
    """Measurements of a network on four test images and four training images.

    Args:
      correct: number of correct test images; all training images are correct.
      loss: at each test image; the training loss is 0.1.
      robust: number of test images that are correct under PGD.
      rise: of the loss, at length 2 twice as much.
      spread: of the singular values of two layers.
      margin: standard deviation of the margins, and their modulus.
    """
    found = {
        "train_loss": np.full(4, 0.1),
        "test_loss": np.full(4, loss),
        "train_correct": np.full(4, True),
        "test_correct": np.arange(4) < correct,
        "robust": np.arange(4) < robust,
        "variation": np.array([[0.0, 2.0], [0.0, 4.0]]).repeat(2, axis=1) * rise,
        "layers": np.array(["a", "b"]),
        "operator": np.array(spread),
        "kernel": np.array(spread) / 2,
    }
    for part in ("train", "test"):
        found[f"{part}_margin"] = np.array([-1.0, 1.0, 1.0, -1.0]) * margin
        found[f"{part}_probability"] = np.full(4, 0.5)
    return found | dict.fromkeys(measure.TERMS, np.array(math.log(0.01)))


@pytest.fixture(scope="module")
def made_up():
    """Results of networks whose numbers are made up, as a file holds them."""
    rows = [
        (Row("", STANDARD, 0.0, None, None), 4, 1.1, 0, 0.8, (3.0, 1.0), 4.0),
        (Row("", PGD, 4.0, None, None), 3, 0.9, 1, 0.4, (2.0, 1.0), 3.0),
        (Row("", PGD, 16.0, None, None), 2, 0.5, 2, 0.2, (1.0, 1.25), 1.0),
        (Row("", PGD, 4.0, 1.0, "clip"), 2, 0.9, 1, 0.4, (1.0, 1.0), 3.0),
        (Row("", PGD, 16.0, 1.0, "clip"), 3, 0.5, 1, 0.4, (1.0, 1.0), 3.0),
    ]
    names = ("correct", "loss", "robust", "rise", "spread", "margin")
    found = []
    for row, *values in rows:
        for seed in (0, 1) if row.bound is None else (0,):
            given = dict(zip(names, values, strict=True))
            given["loss"] += 0.02 * seed
            config = dataclasses.replace(BASE, seed=seed)
            each = Trained(row, config, Path(f"{row.name}-seed{seed}"))
            found.append((each, measured(**given)))
    images = data.load("cifar10_mini", split="test", limit=4)
    settings = measure.Settings("pixels", 8.0, 10, (1.0, 2.0), 4, 100, 0)
    results = {
        "settings": settings._asdict(),
        "git_revision": "abc",
        **summary.summarize(
            found, {"": measure.Examples(images, images, 3600)}, settings
        ),
    }
    return json.loads(json.dumps(runs.as_json(results)))


def lines(text, *beginning):
    """Rows of all tables that begin with some cells, as lists of cells."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows if row[: len(beginning)] == list(beginning)]


def test_rows_stand_beside_those_of_the_paper(made_up):
    text = tables.text(made_up)
    assert "trained on 3600 images, measured on 4 training and 4 test images" in text
    here = ["here", "2", "100.0 ± 0.0", "75.0 ± 0.0", "25.0 ± 0.0", "0.100 ± 0.000"]
    here += ["0.910 ± 0.010", "0.810 ± 0.010", "33.3 ± 0.0", "25.0 ± 0.0"]
    paper = ["paper", "", "99.51", "88.86", "10.65", "0.014", "0.683", "0.669"]
    paper += ["65.92", "58.58"]
    assert lines(text, "ResNet-56", "4")[:2] == [
        ["ResNet-56", "4", *paper],
        ["ResNet-56", "4", *here],
    ]
    # Table 6 has them without a bound, and clipped ones of one seed.
    assert lines(text, "ResNet-56", "no bound", "4")[1][3:] == here
    clipped = lines(text, "ResNet-56", "1", "16", "here")
    assert [row[4:7] for row in clipped] == [["1", "100.0", "75.0"]]
    missing = ["here: missing", "0", *["-"] * 8]
    assert lines(text, "ResNet-56", "5", "4")[1][3:] == missing
    assert lines(text, "ResNet-110", "8")[1] == ["ResNet-110", "8", *missing]
    assert lines(text, "CIFAR-10", "ResNet-56", "16")[1][3:] == missing
    variation = ["CIFAR-10", "ResNet-56", "2", "16"]
    assert lines(text, *variation) == [
        [*variation, "paper", "", "0.0443", "0.1102"],
        [*variation, "here", "2", "0.4000 ± 0.0000", "0.4000 ± 0.0000"],
    ]
    assert lines(text, "paper, CIFAR-10")[0][5:] == ["4.7465", "41", "0.4372", "14"]
    assert lines(text, "here", "PGD", "4", "16", "operator")[0][5:] == [
        *("1.0000", "1", "0.2500", "1")
    ]
    assert lines(text, "PGD", "clipped to 1", "4")[0][5] == "-2.00"


def test_claims_are_judged_by_the_networks(made_up):
    verdicts = {claim["claim"]: claim["verdict"] for claim in made_up["claims"]}
    shown, not_shown = claims.SHOWN, claims.NOT_SHOWN
    assert verdicts == {
        "loss_gap": shown,
        "test_error": shown,
        "robustness": shown,
        "margins": shown,
        # Half of the layers is not most of them.
        "layers": not_shown,
        "variation": shown,
        "fgsm": claims.MISSING,
        "clipping": shown,
    }
    assert verdicts.keys() == tables.CLAIMS.keys()
    text = tables.text(made_up)
    (row,) = lines(text, tables.CLAIMS["clipping"])
    assert row[1:] == [
        *("shown", "6"),
        "PGD: error gap in % rises (4: 25.0 ± 0.0, 16: 50.0 ± 0.0); PGD, clipped to 1: "
        "error gap in % falls (4: 50.0, 16: 25.0)",
    ]
    (row,) = lines(text, tables.CLAIMS["loss_gap"])
    gaps = "0: 1.010 ± 0.010, 4: 0.810 ± 0.010, 16: 0.410 ± 0.010"
    assert row[1:] == ["shown", "6", f"PGD: loss gap falls ({gaps})"]


def test_a_claim_needs_two_strengths(made_up):
    rows = [row for row in made_up["rows"] if row["attack"] == STANDARD]
    judged = claims.judge(rows, "", [1.0])
    assert {claim["verdict"] for claim in judged} == {claims.MISSING}
    assert claims.changes(rows, "", PGD) == []
    assert claims.series(made_up["rows"], "", FGSM) == rows


def test_an_accuracy_that_is_not_defined_is_missing(made_up):
    rows = json.loads(json.dumps(made_up["rows"]))
    # The file holds null for a network without a correct image.
    rows[0]["networks"][0]["conditional"] = None
    verdicts = {c["claim"]: c["verdict"] for c in claims.judge(rows, "", [1.0])}
    assert verdicts["robustness"] == claims.MISSING
    rows[0]["networks"][0]["conditional"] = math.nan
    assert claims.judge(rows, "", [1.0])[2]["verdict"] == claims.MISSING
    assert verdicts["loss_gap"] == claims.SHOWN


def test_densities_are_those_of_all_networks_of_a_row(made_up):
    (recipe,) = made_up["recipes"].values()
    for name, edges in recipe["edges"].items():
        for row in made_up["rows"]:
            density = row["densities"][name]["mean"]
            mass = np.sum(np.array(density) * np.diff(edges))
            # Middle ranges leave some values out.
            inside = mass <= 1 + 1e-9 if "middle" in name else math.isclose(mass, 1)
            assert inside
    # Margins of -3 and 3 are in bins of their own.
    edges = np.array(recipe["edges"]["test_margin"])
    assert (edges[0], edges[-1]) == (-4, 4)
    expected, _ = np.histogram([-3.0, 3.0, 3.0, -3.0], edges, density=True)
    density = made_up["rows"][1]["densities"]["test_margin"]["mean"]
    np.testing.assert_allclose(density, expected)


def test_lengths_are_converted_for_the_network():
    config = dataclasses.replace(BASE, normalization="cifar10")
    assert measure.pixels(config, 4.0, "pixels") == pytest.approx(4 / 255)
    std = np.array([63.0, 62.1, 66.7]) / 255
    expected = 4 / 255 * math.sqrt(np.mean(std**2))
    assert measure.pixels(config, 4.0, "standardized") == pytest.approx(expected)
