"""Networks of the user's own code: they are found, read, checked and told apart."""

import dataclasses
import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import experiments
from experiments.common import own_networks
from opnorm import data
from tests.support import own_networks as mine

HERE = "tests.support.own_networks"
KERNEL = np.arange(36, dtype=np.float32).reshape(12, 3)


def images(num_classes=3):
    drawn = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3))
    names = tuple(map(str, range(num_classes)))
    labels = np.arange(4, dtype=np.int32) % num_classes
    return data.Dataset(drawn.astype(np.uint8), labels, names, "drawn", "drawn images")


def save(folder, kind):
    """A file of each kind that holds {"last": {"kernel": KERNEL}}."""
    if kind == "npz":
        np.savez(folder / "net.npz", **{"last/kernel": KERNEL})
        return folder / "net.npz"
    tree = {"last": {"kernel": KERNEL}}
    if kind == "orbax":
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder / "net", tree)
        return folder / "net"
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (2, 10):
            older = {"last": {"kernel": step / 10 * KERNEL}}
            manager.save(step, args=ocp.args.StandardSave(older))
    return folder / "steps"


@pytest.mark.parametrize("kind", ["npz", "orbax", "steps"])
def test_variables_of_every_kind_of_file_are_read(kind, tmp_path):
    own = own_networks.make(f"{HERE}:make", str(save(tmp_path, kind)))
    x = np.random.default_rng(1).uniform(size=(2, 2, 2, 3)).astype(np.float32)
    expected = x.reshape(2, 12).astype(np.float64) @ KERNEL
    np.testing.assert_allclose(own.f(x), expected, rtol=1e-5)
    assert own.features is own.f
    assert own.preactivations is None


def test_a_module_names_its_features_and_is_measured_in_evaluation_mode():
    own = own_networks.make(f"{HERE}:hidden")
    x = np.random.default_rng(1).uniform(size=(2, 2, 2, 3)).astype(np.float32)

    @jax.jit
    def parts(x):
        return own.f(x), own.features(x), own.preactivations(x)[0]

    logits, features, before = parts(x)
    np.testing.assert_allclose(features, np.maximum(before, 0))
    # Running statistics: a row does not depend on the others.
    changed = parts(np.stack([x[0], 1 - x[1]]))[0]
    np.testing.assert_allclose(logits[0], changed[0], rtol=1e-5)
    assert own_networks.make(f"{HERE}:linen").preactivations is None


def test_a_module_is_found_beside_a_folder_with_the_name_of_this_projects(
    tmp_path, monkeypatch
):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "own_part.py").write_text("def make():\n    return abs")
    (tmp_path / "own_module.py").write_text("from experiments.own_part import make")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__])
    for text in ("own_module:make", "experiments.own_part:make"):
        assert own_networks.make(text).f(-1) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine.py", "must be MODULE:FUNCTION"),
        ("mine.py:make", "must be MODULE:FUNCTION"),
        ("no_such_module:make", "cannot be imported from .* ModuleNotFoundError"),
        (f"{HERE}:absent", "has no function absent"),
        (f"{HERE}:make", "must take no argument, or --variables gives it one"),
        (f"{HERE}:fails", "failed: RuntimeError: the layer is missing"),
        (f"{HERE}:unbound", r"return opnorm\.network\(module, variables\)"),
        (f"{HERE}:text", "returned a str; it must return a function of a batch"),
    ],
)
def test_a_function_that_makes_no_network_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        own_networks.make(text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linen", "gives 3 logits; drawn has 5 classes"),
        ("narrow", r"does not take the images of drawn, a batch \(B, 2, 2, 3\)"),
        ("pair", "gives tuple for 2 images"),
        ("flat", r"the shape \(24,\) for 2 images; it must give logits \(B, K\)"),
        ("whole", "gives int32; it must give floating point logits"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        own_networks.check(own_networks.make(f"{HERE}:{name}"), images(5))


def test_a_network_of_one_logit_becomes_one_of_two_classes():
    with pytest.raises(ValueError, match="one logit for each image; give --binary"):
        own_networks.check(own_networks.make(f"{HERE}:single"), images(2))
    own = own_networks.make(f"{HERE}:single", binary=True)
    own_networks.check(own, images(2))
    x = np.random.default_rng(1).uniform(size=(2, 2, 2, 3)).astype(np.float32)
    single = x.reshape(2, 12).mean(axis=1) - 0.5
    np.testing.assert_allclose(own.f(x), np.c_[[0, 0], single], atol=1e-6)
    wide = own_networks.make(f"{HERE}:linen", binary=True)
    with pytest.raises(ValueError, match="it must be one logit for each example"):
        own_networks.check(wide, images(2))


def test_files_that_hold_no_variables_are_refused(tmp_path):
    for name, error, words in (
        ("absent.npz", FileNotFoundError, "no such file"),
        ("net.pkl", ValueError, r"must be a \.npz or \.safetensors file"),
        ("folder", ValueError, "no checkpoint of orbax"),
    ):
        if name == "folder":
            (tmp_path / name).mkdir()
        elif error is ValueError:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(error, match=words):
            own_networks.read_variables(str(tmp_path / name))
    with pytest.raises(ValueError, match="a is also the beginning of other names"):
        own_networks.nested({"a/b": KERNEL, "a": KERNEL}, "net.npz")
    with pytest.raises(ValueError, match="a of a/b is an array in it too"):
        own_networks.nested({"a": KERNEL, "a/b": KERNEL}, "net.npz")


def test_results_of_other_networks_and_examples_are_told_apart():
    examples = images()

    def identity(kernel=KERNEL, examples=examples):
        f = jax.tree_util.Partial(mine.affine, {"last": {"kernel": kernel}})
        own = own_networks.Own(f"{HERE}:make", None, f, f, None)
        return own_networks.fingerprint(own, examples, 4)

    first = identity()
    assert identity(KERNEL.copy()) == first
    changed = KERNEL.copy()
    changed[0, 0] += 1
    assert identity(changed) != first
    turned = dataclasses.replace(examples, images=examples.images[::-1])
    assert identity(examples=turned) != first
    # A layer of dropout holds keys.
    own = own_networks.make(f"{HERE}:hidden")
    assert own_networks.fingerprint(own, examples, 4) != first


def test_a_network_of_tables_is_measured_by_every_command(tmp_path, run):
    """The network is linear, so its margins, gains and Hessians have closed forms."""
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(4, 2))
    # The middle of the box is tied, so that nearest points are far from its faces.
    kernel = (kernel - kernel.mean(axis=0)).astype(np.float32)
    x = rng.uniform(0.4, 0.6, size=(12, 4))
    y = (x @ kernel).argmax(axis=1)
    y[:2] = 1 - y[:2]
    table, net = tmp_path / "table.npz", tmp_path / "net.npz"
    np.savez(table, x=x, y=y, x_train=x, y_train=y, class_names=np.array(["a", "b"]))
    np.savez(net, **{"last/kernel": kernel})
    network = [f"--network={HERE}:make", f"--variables={net}", f"--dataset=npz:{table}"]

    def measured(name, file, *options):
        out = tmp_path / name
        result = run(name, *network, f"--out={out}", *options)
        assert result.returncode == 0, result.stderr
        return json.loads((out / file).read_text())

    # One step of the gradient method is exact for two classes.
    direction = kernel[:, 1] - kernel[:, 0]
    distance = np.sort(np.abs(x[2:] @ direction) / np.linalg.norm(direction))
    epsilon = distance[4:6].mean()
    options = ["--attack=fgm", "--check_examples=0", "--nospectrum"]
    found = measured("evaluate", "evaluation.json", *options, f"--epsilons={epsilon}")
    assert found["clean_accuracy"] == pytest.approx(10 / 12)
    assert found["attacks"]["fgm"]["mean"] == pytest.approx([10 / 12, 5 / 12])

    few = ["--num_steps=2", "--epsilons=0.1", "--epsilons_inf="]
    (found,) = measured("spectrum", "results.json", *few)["networks"].values()
    gains = np.linalg.svd(kernel, compute_uv=False)
    curve = found["singular_values"]["logits"]["clean"]["mean"]
    np.testing.assert_allclose(curve, gains, rtol=1e-4)

    (found,) = measured("linearity", "results.json", *few)["networks"].values()
    deviation = found["L2"]["adversarial"]["deviation"]["mean"]
    np.testing.assert_allclose(deviation, 0, atol=1e-6)

    options = ["--train_examples=12", "--num_probes=2", "--num_steps=3"]
    (found,) = measured("curvature", "results.json", *options)["networks"].values()
    assert found["inputs"]["sigma"]["mean"] == pytest.approx(gains[0], rel=1e-4)
    assert found["hessian"]["parameters"] == kernel.size
