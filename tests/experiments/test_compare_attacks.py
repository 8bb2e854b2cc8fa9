"""The same network and the same attack in PyTorch and in opnorm."""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.compare_attacks import __main__ as compare_attacks
from experiments.compare_attacks import peers, tables, torch_cnn7
from opnorm import attacks, data, extras, models, training

EPSILONS = {2.0: 0.5, math.inf: 4 / 255}


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    # More threads wait for each other on batches as small as these.
    found.set_num_threads(1)
    return found


@pytest.fixture(scope="module")
def examples(torch):
    return data.load("cifar10_mini", split="test", limit=16)


@pytest.fixture(scope="module")
def variables(examples):
    """Weights of a CNN7, with BatchNorm statistics of real images."""
    module = models.CNN7(width=4, num_classes=10)
    x = data.to_float(jnp.asarray(examples.images))
    variables = module.init(jax.random.key(0), x)
    for _ in range(20):
        _, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **moved}
    return variables


@pytest.fixture(scope="module")
def f(variables):
    return jax.jit(models.CNN7(width=4, num_classes=10).bind(variables).__call__)


@pytest.fixture(scope="module")
def network(variables):
    return torch_cnn7.build(variables["params"], variables["batch_stats"])


def decisions(f, examples):
    return jnp.argmax(f(data.to_float(jnp.asarray(examples.images))), axis=1)


def to_images(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_the_copy_in_pytorch_computes_the_same_logits(f, network, examples):
    theirs = network(torch_cnn7.to_torch(examples.images)).numpy()
    ours = np.asarray(f(data.to_float(jnp.asarray(examples.images))))
    assert ours.std(axis=0).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_network_that_is_no_cnn7_is_refused(torch):
    with pytest.raises(ValueError, match="CNN7"):
        torch_cnn7.build({"dense1": {}}, {})


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_pga_visits_the_points_of_foolbox(p, f, torch, network, examples):
    foolbox = pytest.importorskip("foolbox")
    x, labels = data.to_float(jnp.asarray(examples.images)), decisions(f, examples)
    ours = attacks.pga(
        p=p,
        epsilon=EPSILONS[p],
        num_steps=3,
        random_start=False,
        skip_blocked=False,
    )(f, x, labels)
    kind = {2.0: "L2", math.inf: "Linf"}[p] + "ProjectedGradientDescentAttack"
    attack = getattr(foolbox.attacks, kind)(
        steps=3, abs_stepsize=2 * EPSILONS[p] / 3, random_start=False
    )
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    targets = torch.from_numpy(np.array(labels, np.int64))
    inputs = torch_cnn7.to_torch(examples.images)
    _, theirs, _ = attack(model, inputs, targets, epsilons=EPSILONS[p])
    difference = np.abs(np.asarray(ours) - to_images(theirs))
    if p == 2:
        assert difference.max() <= 1e-4
    else:
        # The sign of a gradient entry that is nearly zero may differ.
        assert np.mean(difference > 1e-6) <= 1e-3


@pytest.mark.parametrize("name", ["pgd_l2", "pgd_linf"])
def test_pgd_of_every_library_leaves_the_same_accuracy(
    name, f, torch, network, examples
):
    for library in ("torchattacks", "foolbox"):
        pytest.importorskip(library)
    x, labels = data.to_float(jnp.asarray(examples.images)), decisions(f, examples)
    targets = torch.from_numpy(np.array(labels, np.int64))
    row = peers.ROWS[name]
    found = []
    for scale in (0.03, 0.1, 0.3, 1.0):
        epsilon = scale * EPSILONS[row.p]
        attack = attacks.pga(p=row.p, epsilon=epsilon, num_steps=10, skip_blocked=False)
        points = {"opnorm": attack(f, x, labels, jax.random.key(0))}
        for peer in row.peers:
            if peer.library != "foolbox-jax":
                torch.manual_seed(0)
                inputs = torch_cnn7.to_torch(examples.images)
                points[peer.library] = to_images(
                    peer.run(network, inputs, targets, epsilon)
                )
        standing = {
            library: int(jnp.sum(jnp.argmax(f(jnp.asarray(z)), axis=1) == labels))
            for library, z in points.items()
        }
        # Random starts differ between libraries: one image may fall for one alone.
        assert max(standing.values()) - min(standing.values()) <= 1, standing
        found.append(standing["opnorm"])
    assert found[0] > found[-1]


@pytest.fixture
def run_directory(torch, tmp_path):
    config = training.Config(
        width=4, method="standard", train_examples=160, batch_size=32, epochs=1
    )
    mesh = training.data_mesh(jax.devices()[:1])
    training.train(config, directory=tmp_path / "run", mesh=mesh, show_progress=False)
    return tmp_path / "run"


def parsed_flags(**values):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["compare_attacks"])
    return flagsaver.flagsaver(**values)


def test_the_binary_reports_every_library(
    run_directory, torch, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for library in ("torchattacks", "foolbox"):
        pytest.importorskip(library)
    out = tmp_path / "out"
    with parsed_flags(
        run=str(run_directory),
        out=str(out),
        attacks=["pgd_l2"],
        examples=20,
        batch_size=16,
        rounds=2,
    ):
        compare_attacks.main()
    report = json.loads((out / "comparison.json").read_text())
    (row,) = report["rows"]
    assert report["largest_logit_difference"] <= 1e-4
    assert report["examples"] == 20
    assert set(row["found"]) == {
        "opnorm",
        "opnorm, every step",
        "pytorch",
        "torchattacks",
        "foolbox",
        "foolbox-jax",
    }
    for found in row["found"].values():
        assert len(found["seconds_of_rounds"]) == 2
        assert found["largest_distance"] <= 0.5 * (1 + 1e-4)
        assert 0 <= found["accuracy"] <= 1
    assert (out / "table.md").read_text().strip() in capsys.readouterr().out


def test_the_table_is_made_of_the_results():
    folder = Path(__file__).parents[2] / "experiments" / "results" / "attacks"
    report = json.loads((folder / "standard" / "comparison.json").read_text())
    lines = tables.text(report["rows"]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    found = [
        (row["attack"], library, each)
        for row in report["rows"]
        for library, each in row["found"].items()
    ]
    assert len(cells) == len(found)
    for row, (attack, library, each) in zip(cells, found, strict=True):
        assert row[:2] == [f"{attack}, eps 0.5", library]
        assert float(row[2].rstrip("%")) == pytest.approx(
            100 * each["accuracy"], abs=0.05
        )
        assert float(row[5]) == pytest.approx(each["mean_distance"], rel=1e-3)
        assert float(row[8].rstrip("x")) == pytest.approx(
            each["times_opnorm"], abs=0.005
        )
    # The accuracy of DeepFool is 1.8 % here and 5.9 % in torchattacks.
    (deepfool,) = (
        row for row in cells if row[0][:8] == "deepfool" and row[1][:5] == "torch"
    )
    assert deepfool[2:4] == ["5.9%", "-4.1"]


@pytest.mark.parametrize("missing", ["torch", "torchattacks", "foolbox"])
def test_a_missing_library_is_named_with_its_extra(missing, monkeypatch):
    for library in ("torch", "torchattacks", "foolbox"):
        if library == missing:
            monkeypatch.setitem(sys.modules, library, None)
            break
        pytest.importorskip(library)
    with (
        parsed_flags(run="/nowhere"),
        pytest.raises(extras.MissingPackage, match=rf"{missing}.*\[oracles\]"),
    ):
        compare_attacks.main()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"run": None}, "run"),
        ({"run": "x", "attacks": ["pdg_l2"]}, "attacks.*pdg_l2.*pgd_l2"),
        ({"run": "x", "examples": 0}, "examples.*0"),
    ],
)
def test_bad_flags_are_named_before_anything_is_loaded(values, words):
    with parsed_flags(**values), pytest.raises(ValueError, match=words):
        compare_attacks.main()
