"""experiments.curvature and experiments.interpolation as a user runs them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import data, training


@pytest.fixture(scope="module")
def trained(tmp_path_factory, save_untrained):
    """A smooth network as it begins, said to be trained on 40 images."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    config = training.Config(
        model="mlp1", width=4, activation="smooth_relu", train_examples=40
    )
    save_untrained(folder, config, 3)
    return folder


def hessians_in_the_input(network, x, labels):
    """Extreme eigenvalues and traces ``(6,)``, from the four hidden units alone."""

    def hidden(x):
        return network.preactivations(x)[0]

    h, rows = jax.jit(lambda x: (hidden(x), jax.jacrev(lambda x: hidden(x).sum(0))(x)))(
        x
    )
    h = np.asarray(h, np.float64)
    # The first layer is affine: the same rows for every image.
    rows = np.asarray(rows, np.float64).swapaxes(0, 1).reshape(len(h), 4, -1)
    z = np.clip(h + 0.5, 0, 1)
    slope, bend = 3 * z**2 - 2 * z**3, 6 * z - 6 * z**2
    value = np.where(np.abs(h) < 0.5, z**3 - z**4 / 2, np.maximum(h, 0))
    last = network.params["logits"]
    kernel, bias = (np.asarray(last[n], float) for n in ("kernel", "bias"))
    logits = value @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    found = []
    for i, label in enumerate(labels):
        outer = slope[i][:, None] * kernel
        middle = outer @ (np.diag(p[i]) - np.outer(p[i], p[i])) @ outer.T
        middle += np.diag(bend[i] * (kernel @ (p[i] - np.eye(10)[label])))
        triangle = np.linalg.qr(rows[i].T, mode="r")
        found.append(np.linalg.eigvalsh(triangle @ middle @ triangle.T))
    found = np.array(found)
    return np.maximum(found[:, -1], 0), np.minimum(found[:, 0], 0), found.sum(axis=1)


def test_curvature_measures_parameters_and_inputs(trained, run):
    options = [f"--run={trained}", "--examples=6", "--train_examples=30"]
    more = ["--batch_size=8", "--num_probes=2"]
    result = run("curvature", *options, "--num_steps=6", *more)
    assert result.returncode == 0, result.stderr
    assert "standard: inputs: image 6/6" in result.stderr
    assert "not piecewise linear at 100.0%: eigenvalues within" in result.stdout
    assert "gauss-newton: probe 2/2" in result.stderr
    assert "| standard | Gauss-Newton" in result.stdout
    out = trained / "curvature"
    results = json.loads((out / "results.json").read_text())
    assert results["examples"] == 6
    assert results["train_examples"] == 30
    found = results["networks"]["standard"]

    network = training.load_run(trained).network
    images = data.load("cifar10_mini", split="test", limit=6)
    seen = data.load("cifar10_mini", split="train", limit=30)

    @jax.jit
    def expected(params, test, labels, train):
        def logits(params, x):
            return network.replace(variables={"params": params})(x)

        def loss(x):
            each = -jax.nn.log_softmax(logits(params, x))
            return jnp.sum(each[jnp.arange(len(x)), labels])

        j = jax.tree.leaves(jax.jacrev(logits)(params, train))
        j = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in j], axis=2)
        p = jax.nn.softmax(logits(params, train))
        squares, mean = jnp.sum(j**2, axis=2), jnp.einsum("bd,bdn->bn", p, j)
        traces = jnp.sum(p * squares, axis=1) - jnp.sum(mean**2, axis=1)
        gradients = jax.grad(loss)(test).reshape(len(test), -1)
        return jnp.linalg.norm(gradients, axis=1), traces.mean(), j.shape[2]

    lengths, trace, size = expected(
        network.params,
        data.to_float(images.images),
        images.labels,
        data.to_float(seen.images),
    )
    lengths, trace = np.asarray(lengths), float(trace)
    steep = found["inputs"]["gradient_norm"]
    assert steep["mean"] == pytest.approx(lengths.mean(), rel=1e-4)
    assert steep["median"] == pytest.approx(np.median(lengths), rel=1e-4)
    assert steep["maximum"] == steep["percentiles"][100]
    inputs = found["inputs"]
    largest, smallest, traces = hessians_in_the_input(
        network, data.to_float(images.images), images.labels
    )
    # Four units: six Lanczos steps reach every eigenvalue that is not zero.
    assert smallest.min() < 0 < largest.min()
    assert inputs["curved"] == 1
    for name, expected in (("largest", largest), ("smallest", smallest)):
        assert inputs[name]["mean"] == pytest.approx(expected.mean(), rel=1e-3)
        most = pytest.approx(expected.max(), rel=1e-3, abs=1e-6 * largest.max())
        assert inputs[name]["maximum"] == most
    assert inputs["eigenvalue_error"]["maximum"] < 1e-3 * largest.max()
    deviation = inputs["trace"]["mean"] - traces.mean()
    assert abs(deviation) < 4 * inputs["trace_error"]["maximum"]
    fisher = found["gauss_newton"]
    assert fisher["parameters"] == size
    estimate = fisher["trace"]
    assert abs(estimate["mean"] - trace) < 6 * estimate["standard_error"]
    assert estimate["standard_error"] < trace
    largest, smallest = fisher["largest"], fisher["smallest"]
    assert 0 < largest["value"] < trace
    assert abs(smallest["value"]) <= smallest["error"]
    assert found["hessian"]["smallest"]["value"] < 0
    for matrix in ("hessian", "gauss_newton"):
        curve = found[matrix]["density"]
        area = np.trapezoid(curve["mean"], curve["asinh"])
        assert area == pytest.approx(1, abs=0.01)
    for name in ("parameter_spectrum", "input_curvature"):
        assert (out / f"{name}.png").stat().st_size > 0


def test_a_sweep_measures_networks_that_differ_in_one_option(tmp_path, run):
    options = ["--model=mlp1", "--width=4", "--train_examples=64", "--batch_size=16"]
    options += ["--epochs=1", "--num_steps=2", "--test_examples=20", "--test_steps=2"]
    options += ["--sweep=step_size", "--values=inf,1", f"--run={tmp_path}"]
    result = run("interpolation", *options)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    first, second = results["points"]
    assert first["value"] == 1
    assert second["value"] == "inf"
    for point in (first, second):
        assert 0 <= point["adversarial"]["mean"] <= point["clean"]["mean"] <= 1
    measured = json.loads((tmp_path / "step_size-1-seed0/measured.json").read_text())
    assert measured["clean_accuracy"] == first["clean"]["mean"]
    config = training.load_run(tmp_path / "step_size-inf-seed0").config
    assert (config.method, config.step_size) == ("adversarial", np.inf)
    # In lengths: one half of epsilon, 0.5, with two steps.
    flags = json.loads((tmp_path / "flags.json").read_text())["flags"]
    assert [c["step_size"] for c in flags["configs"]] == [0.25, "inf"]
    assert (tmp_path / "accuracy.png").stat().st_size > 0
    clean, attacked = (100 * first[n]["mean"] for n in ("clean", "adversarial"))
    table = (tmp_path / "table.md").read_text()
    assert f"| {clean:.1f} % | {attacked:.1f} %" in table.replace("  ", "")
    assert "standard error over 20 images" in table


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("curvature", ["--train_examples=41"], ["train_examples is 41", "on 40"]),
        ("interpolation", ["--sweep=mix", "--values=0,1.5"], ["values", "1.5"]),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(
    name, arguments, words, trained, run
):
    before = sorted(trained.rglob("*"))
    result = run(name, f"--run={trained}", *arguments)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(trained.rglob("*")) == before
