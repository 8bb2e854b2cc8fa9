"""The benchmark at sizes at which its times mean nothing, and its tables."""

import json
from pathlib import Path

import jax
import pytest

from experiments.benchmark import networks, steps, tables
from experiments.benchmark.setting import Setting
from experiments.common import timing, train_steps

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_parts_are_measured_and_written(run, tmp_path):
    options = ["--parts=power", "--width=2", "--batch_size=2", "--rounds=3"]
    result = run("benchmark", *options, f"--run={tmp_path}")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["ratios"]["10 power steps / 20 linear passes"] > 0
    assert set(found["traces"].values()) == {1}
    table = (tmp_path / "table.md").read_text()
    assert table in result.stdout
    assert "| <= 1.2 " in table
    assert found["machine"]["product_gflops"][0] > 0
    assert f"JAX {jax.__version__}" in table.splitlines()[0]


def test_a_usage_error_is_one_line_and_writes_nothing(run, tmp_path):
    directory = tmp_path / "run"
    for flag, word in (
        ("--parts=magic", "magic"),
        ("--networks=vgg", "vgg"),
        ("--peer_rows=pgd", "pgd"),
    ):
        result = run("benchmark", flag, f"--run={directory}")
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert word in result.stderr
    assert not directory.exists()


@pytest.fixture
def tiny(monkeypatch):
    size = train_steps.Size(8, 4, 32, 10)
    monkeypatch.setitem(train_steps.REDUCED, "cnn7", size)
    return size


def measure():
    setting = Setting(
        compilations=timing.Compilations(),
        width=2,
        batch_size=2,
        num_rounds=3,
        attack_steps=(),
        compute_dtype="float32",
        full_size=False,
        directory=Path("unused"),
    )
    return networks.measure(setting, "cnn7")


def test_a_rate_is_the_steps_arithmetic_over_its_time(tiny):
    seconds, ratios, _ = measure()
    product = ratios["matrix product, float32, TFLOP/s"] * 1e12
    assert product == pytest.approx(2 * 2048**3 / seconds["matrix product, float32"])
    # Multiplications and additions of the convolutions, at each place of the output.
    places = (32, 32, 16, 16, 8, 8)
    channels = (3, 8, 8, 16, 16, 32, 32)
    layers = list(zip(channels[:-1], channels[1:], places, strict=True))
    # The last has no padding; zeros outside are not counted.
    forward = sum(2 * a * b * (3 * n - 2) ** 2 for a, b, n in layers)
    forward += 2 * 32 * 64 * (3 * 2) ** 2
    first = 2 * 3 * 8 * (3 * 32 - 2) ** 2
    # Forward, gradients of kernels, gradients of inputs of all but the first; and for
    # each step of the attack one pass forward and one back to the images.
    standard = tiny.batch_size * (3 * forward - first)
    attacked = standard + tiny.batch_size * 10 * 2 * forward
    expected = {"standard step": standard, "adversarial-only step": attacked}
    for label, flops in expected.items():
        rate = ratios[f"cnn7, {label}, float32: rate / matrix product"]
        counted = rate * product * seconds[f"cnn7, {label}, float32"]
        # Convolutions are most of it.
        assert flops < counted < 1.1 * flops, label


def test_a_step_that_does_not_fit_into_memory_is_left_out(tiny, monkeypatch, capsys):
    def train_step(setting, title, program, label):
        if label == "standard step":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return steps.TrainStep(setting, title, program, label)

    monkeypatch.setattr(networks, "TrainStep", train_step)
    seconds, ratios, _ = measure()
    assert "too large for the memory: cnn7, standard step" in capsys.readouterr().out
    assert "cnn7, adversarial-only step, float32" in seconds
    assert not any("/ standard step" in name for name in ratios)


@pytest.mark.parametrize("name", ["benchmark", "benchmark_networks"])
def test_committed_tables_are_made_of_committed_results(name):
    folder = RESULTS / name
    results = json.loads((folder / "benchmark.json").read_text())
    assert f"{tables.text(results)}\n" == (folder / "table.md").read_text()


def test_promises_are_of_the_machine_that_they_are_for():
    rate = "cnn7, adversarial-only step, bfloat16: rate / matrix product"
    ratios = {
        "naive power loop / 10 power steps": 3.999,
        rate: 0.35,
        "PGA-7 / 7 x (forward + input gradient)": 1.21,
        "adversarial step / standard step": 5.0,
    }
    rows = {}
    for platform in ("cpu", "gpu"):
        results = {"environment": {"platform": platform}, "ratios": ratios}
        lines = tables.text(results | {"seconds": {}}).splitlines()[2:6]
        rows[platform] = [
            tuple(cell.strip() for cell in line.split("|")[3:5]) for line in lines
        ]
    rest = [("<= 1.2", "NO"), ("", "")]
    assert rows["cpu"] == [(">= 4", "NO"), ("", ""), *rest]
    assert rows["gpu"] == [("", ""), (">= 0.35", "yes"), *rest]
