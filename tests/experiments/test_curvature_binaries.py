"""experiments.curvature and experiments.interpolation as a user runs them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import networks
from opnorm import data, training
from opnorm.training import checkpoints, network

ROOT = Path(__file__).parent.parent.parent


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network as it begins, said to be trained on 40 pictures."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    config = training.Config(model="mlp", width=4, train_examples=40)
    module = training.build_model(config, 10)
    params, batch_stats = network.init(module, jax.random.key(3), (32, 32, 3))
    store = checkpoints.CheckpointStore(folder / "checkpoints")
    state = {"params": params, "batch_stats": batch_stats}
    store.save(0, state, {"config": dataclasses.asdict(config)})
    store.close()
    return folder


def test_curvature_measures_parameters_and_inputs(trained):
    options = [f"--run={trained}", "--examples=6", "--train_examples=30"]
    result = run("curvature", *options, "--num_steps=6", "--batch_size=8")
    assert result.returncode == 0, result.stderr
    assert "standard: inputs: picture 6/6" in result.stderr
    assert "gauss-newton: probe 3/3" in result.stderr
    assert "| standard | Gauss-Newton" in result.stdout
    out = trained / "curvature"
    results = json.loads((out / "results.json").read_text())
    assert results["examples"] == 6 and results["train_examples"] == 30
    found = results["networks"]["standard"]

    config, params, _, _ = training.load_run(trained)
    logits = networks.bind(training.build_model(config, 10)).logits
    pictures = data.load("cifar10_mini", split="test", limit=6)

    def loss(x, labels):
        each = -jax.nn.log_softmax(logits({"params": params}, x))
        return each[jnp.arange(len(x)), labels].sum()

    gradients = jax.grad(loss)(data.to_float(pictures.images), pictures.labels)
    lengths = np.linalg.norm(np.asarray(gradients).reshape(6, -1), axis=1)
    steep = found["inputs"]["gradient_norm"]
    assert steep["mean"] == pytest.approx(lengths.mean(), rel=1e-4)
    assert steep["median"] == pytest.approx(np.median(lengths), rel=1e-4)
    assert steep["maximum"] == steep["percentiles"][100]
    for bent in ("largest", "trace"):
        assert 0 < found["inputs"][bent]["mean"]

    def rows(params, x):
        return logits({"params": params}, x)

    seen = data.load("cifar10_mini", split="train", limit=30).images
    jacobian = jax.jit(jax.jacrev(rows))(params, data.to_float(seen))
    j = jnp.concatenate(
        [a.reshape(30, 10, -1) for a in jax.tree.leaves(jacobian)], axis=2
    )
    p = jax.nn.softmax(rows(params, data.to_float(seen)))
    square, mean = jnp.sum(j**2, axis=2), jnp.einsum("bd,bdn->bn", p, j)
    trace = float(jnp.mean(jnp.sum(p * square, axis=1) - jnp.sum(mean**2, axis=1)))
    fisher = found["gauss_newton"]
    assert fisher["parameters"] == j.shape[2]
    estimate = fisher["trace"]
    assert abs(estimate["mean"] - trace) < 6 * estimate["standard_error"]
    assert estimate["standard_error"] < trace
    largest, smallest = fisher["largest"], fisher["smallest"]
    assert 0 < largest["value"] < trace
    assert abs(smallest["value"]) <= smallest["error"]
    assert found["hessian"]["smallest"]["value"] < 0
    for matrix in ("hessian", "gauss_newton"):
        curve = found[matrix]["density"]
        area = np.trapezoid(curve["mean"], curve["eigenvalue"])
        assert area == pytest.approx(1, abs=0.01)
    for name in ("parameter_spectrum", "input_curvature"):
        assert (out / f"{name}.png").stat().st_size > 0


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_numbers(tmp_path):
    options = ["--model=mlp", "--width=4", "--train_examples=64", "--batch_size=16"]
    options += ["--epochs=1", "--num_steps=2", "--test_examples=20", "--test_steps=2"]
    options += ["--sweep=step_size", "--values=inf,1", f"--run={tmp_path}"]
    first = run("interpolation", *options)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [point["value"] for point in results["points"]] == [1, "inf"]
    for point, size in zip(results["points"], (0.25, np.inf), strict=True):
        name = f"step_size-{float(point['value']):g}-seed0"
        config, *_ = training.load_run(tmp_path / name)
        assert (config.method, config.step_size) == ("adversarial", size)
        assert point["clean"]["mean"] == point["seeds"]["clean_accuracy"][0]
        assert 0 <= point["adversarial"]["mean"] <= point["clean"]["mean"] <= 1
    assert (tmp_path / "accuracy.png").stat().st_size > 0
    done = tmp_path / "step_size-1-seed0" / "evaluation.json"
    written = done.stat().st_mtime_ns
    (tmp_path / "step_size-inf-seed0" / "evaluation.json").unlink()
    again = run("interpolation", *options)
    assert again.returncode == 0, again.stderr
    assert done.stat().st_mtime_ns == written
    repeated = json.loads((tmp_path / "results.json").read_text())
    assert repeated["points"] == results["points"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("curvature", ["--train_examples=41"], ["train_examples is 41", "on 40"]),
        ("interpolation", ["--sweep=mix", "--values=0,1.5"], ["values", "1.5"]),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(name, arguments, words, trained):
    before = sorted(trained.rglob("*"))
    result = run(name, f"--run={trained}", *arguments)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(trained.rglob("*")) == before
