"""experiments.universal, and the results that leave experiments.evaluate."""

import json

import numpy as np
import pytest

from experiments.common import attack_specs
from experiments.evaluate import leaving
from opnorm import data, reports, training


@pytest.fixture(scope="module")
def trained(tmp_path_factory, save_untrained):
    """A network as it begins."""
    folder = tmp_path_factory.mktemp("runs") / "net"
    config = training.Config(method="standard", model="mlp1", width=6, seed=0)
    save_untrained(folder, config, 10)
    return folder


def test_a_card_is_made_of_the_results_of_the_evaluation():
    """AutoAttack's programs take long to compile; its results are given here."""
    spec = attack_specs.parse_attack("auto_attack num_steps=20")
    curve = {"mean": [0.9, 0.4], "standard_error": [0.01, 0.02], "epsilon": [0, 0.5]}
    attack = {**curve, "after": {"apgd": [0.5], "square": [0.4]}, "seconds": 3.0}
    results = {
        "attacks": {str(spec): attack},
        "data": "drawn",
        "split": "test",
        "examples": 10_000,
        "norm": "L2",
        "seed": 4,
        "checks": [{"name": "units", "passed": True, "detail": "fine"}],
    }
    card = leaving.card("mine", results, spec)
    assert (card["clean_accuracy"], card["clean_standard_error"]) == (0.9, 0.01)
    assert (card["robust_accuracy"], card["robust_standard_error"]) == (0.4, 0.02)
    assert card["after"] == {"apgd": 0.5, "square": 0.4}
    assert card["deviations"] == ["20 steps of APGD and FAB; the standard is 100"]
    text = reports.card_text(card)
    assert "| **AutoAttack, L2, epsilon = 0.5** | **40.00 ± 2.00 %** |" in text
    assert "- ok: units: fine" in text


def test_runs_of_several_seeds_are_evaluated_on_their_validation_split(
    tmp_path, run, save_untrained
):
    for seed in (0, 1):
        config = training.Config(
            method="standard",
            model="mlp1",
            width=6,
            seed=seed,
            validation_fraction=0.1,
        )
        save_untrained(tmp_path / f"net{seed}", config, seed)
    given = [f"--run={tmp_path}/net{{seed}}", "--seeds=0,1", f"--out={tmp_path}/out"]
    given += ["--split=validation[3:43]", "--targets=7", "--attack=fgm", "--p=2"]
    given += ["--epsilons=0.5", "--check_examples=0", "--nospectrum"]
    result = run("evaluate", *given)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "evaluation_targeted.json").read_text())
    train_set = data.load("cifar10_mini", split="train")
    held_out = data.split_validation(train_set, 0.1)[1].slice(3, 43)
    kept = held_out.labels != 7
    x = (held_out.images[kept].reshape(kept.sum(), -1) / 255 - 0.5) / 0.5
    right, reached = [], []
    for seed in (0, 1):
        params = training.load_run(tmp_path / f"net{seed}").network.params
        hidden, logits = params["dense1"], params["logits"]
        units = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0)
        decided = np.argmax(units @ logits["kernel"] + logits["bias"], axis=1)
        right.append(np.mean(decided == held_out.labels[kept]))
        reached.append(np.mean(decided == 7))
    assert results["examples"] == kept.sum()
    assert results["targets"]["left_out"] == 40 - kept.sum()
    assert results["clean_accuracy"] == pytest.approx(np.mean(right))
    curve = results["attacks"]["fgm"]
    assert curve["mean"][0] == pytest.approx(np.mean(reached))
    error = abs(reached[0] - reached[1]) / 2
    assert curve["standard_error"][0] == pytest.approx(error)
    assert curve["mean"][1] > curve["mean"][0]
    assert "| target reached at epsilon" in result.stdout
    assert "over 2 networks (seeds 0, 1)" in result.stdout


def test_a_universal_perturbation_is_measured_beside_its_bounds(trained, tmp_path, run):
    given = [f"--run={trained}", "--fit_examples=6", "--examples=6", "--num_steps=2"]
    given += ["--p=2", "--q=2", "--epsilons=0.5,2", "--search_steps=60", "--restarts=1"]
    result = run("universal", *given, f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["networks"]["standard"]
    params = training.load_run(trained).network.params
    images = data.load("cifar10_mini", split="test", limit=12).images / 255
    hidden, logits = params["dense1"], params["logits"]
    x = (images.reshape(12, -1) - 0.5) / 0.5
    alive = x @ hidden["kernel"] + hidden["bias"] > 0
    first = np.asarray(hidden["kernel"]) / 0.5
    dense = np.einsum("nh,bh,hd->bdn", first, alive, logits["kernel"])
    _, values, rows = np.linalg.svd(dense[:6].reshape(-1, 3072), full_matrices=False)
    assert found["singular_value"] == pytest.approx(values[0], rel=1e-3)
    with np.load(tmp_path / "perturbations.npz", allow_pickle=False) as stored:
        direction = stored["standard"].ravel()
    assert abs(direction @ rows[0]) == pytest.approx(1, abs=1e-2)
    promised = np.array(found["change"]["promised"])
    np.testing.assert_allclose(promised, [0.5 * values[0], 2 * values[0]], rtol=1e-3)
    fooled = np.array(found["fooling"]["universal"]["mean"])
    assert np.all(fooled <= found["bound"]["measured"])
    assert (results["fit_examples"], results["examples"]) == (6, 6)
    for name in ("fooling.png", "perturbations.png", "table.md"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save_examples=OUT/a.npz"], ["one attack at one epsilon"]),
        (["--card=L2", "--p=inf"], ["p is inf", "card=L2"]),
        (["--card=L2", "--targets=random"], ["card is L2", "targets is random"]),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(
    flags, words, trained, tmp_path, run
):
    given = [flag.replace("OUT", str(tmp_path)) for flag in flags]
    result = run("evaluate", f"--run={trained}", *given, f"--out={tmp_path / 'out'}")
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []
