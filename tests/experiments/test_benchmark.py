"""The benchmark at sizes at which its times mean nothing."""

import json

import jax
import pytest

from experiments.common import timing, train_steps


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


def test_a_usage_error_is_one_line_and_writes_nothing(run, tmp_path):
    directory = tmp_path / "run"
    for flag, word in (("--parts=magic", "magic"), ("--networks=vgg", "vgg")):
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
    return train_steps.measure(
        timing.Compilations(),
        "cnn7",
        full_size=False,
        compute_dtype="float32",
        num_rounds=3,
    )


def test_a_rate_is_the_steps_arithmetic_over_its_time(tiny):
    seconds, ratios = measure()
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


def test_what_does_not_fit_into_memory_is_left_out(tiny, monkeypatch, capsys):
    build = train_steps.train_step

    def train_step(compilations, name, size, label, *rest, **options):
        if label == "standard step":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return build(compilations, name, size, label, *rest, **options)

    monkeypatch.setattr(train_steps, "train_step", train_step)
    seconds, ratios = measure()
    assert "too large for the memory: cnn7, standard step" in capsys.readouterr().out
    assert "cnn7, adversarial-only step, float32" in seconds
    assert not any("/ standard step" in name for name in ratios)
