"""experiments.spectrum and experiments.linearity as a user runs them."""

import json

import numpy as np
import pytest

from experiments.common import options
from opnorm import data, training


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_untrained):
    """Two networks of one method, as they begin."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        config = training.Config(
            method="data_dependent_snr", model="mlp1", width=6, seed=seed
        )
        save_untrained(folder / f"seed{seed}", config, seed + 10)
    return folder


def jacobians(params, images):
    """Jacobians of the features and the logits of ``mlp1``: ``(B, outputs, n)``."""
    hidden, logits = params["dense1"], params["logits"]
    x = (images.reshape(len(images), -1) / 255 - 0.5) / 0.5
    alive = x @ hidden["kernel"] + hidden["bias"] > 0
    features = alive[:, :, None] * np.asarray(hidden["kernel"]).T / 0.5
    return features, np.asarray(logits["kernel"]).T @ features


def test_spectrum_compares_runs_with_an_untrained_network(runs, run):
    options = [f"--run={runs / 'seed0'}", f"--run={runs / 'seed1'}", "--examples=6"]
    options += ["--num_steps=2", "--epsilons=0.25,0.5", "--epsilons_inf="]
    result = run("spectrum", *options)
    assert result.returncode == 0, result.stderr
    assert "spectra: spectrum 24/24" in result.stderr
    out = runs / "seed0" / "spectrum"
    results = json.loads((out / "results.json").read_text())
    names = [f"data_dependent_snr (seed{seed})" for seed in (0, 1)]
    assert list(results["networks"]) == [*names, "untrained"]
    assert results["epsilon"] == 0.5
    assert results["examples"] == 6
    found = results["networks"][names[1]]
    params = training.load_run(runs / "seed1").network.params
    images = data.load("cifar10_mini", split="test", limit=6).images
    for quantity, jacobian in zip(
        ("features", "logits"), jacobians(params, images), strict=True
    ):
        expected = np.linalg.svd(jacobian, compute_uv=False).mean(axis=0)
        curve = found["singular_values"][quantity]["clean"]
        np.testing.assert_allclose(curve["mean"], expected, rtol=1e-3, atol=1e-4)
    # The dominant vector of the one measurement is that of the other.
    by_length = found["alignment_by_length"]["L2"]
    assert by_length["epsilon"] == [0.25, 0.5]
    by_rank = found["alignment_by_rank"]["cosine"]
    first = by_rank["adversarial"]["mean"][0]
    assert by_length["adversarial"]["mean"][1] == pytest.approx(first, abs=1e-3)
    assert by_rank["random"]["mean"][0] < 0.1
    assert all(count >= 2 for count in by_rank["adversarial"]["counted"])
    for name in (
        "spectrum_features",
        "spectrum_logits",
        "alignment_by_rank",
        "alignment_by_length_L2",
    ):
        assert (out / f"{name}.png").stat().st_size > 0


def test_linearity_measures_one_run_where_it_is_told(runs, tmp_path, run):
    options = [f"--run={runs / 'seed0'}", "--examples=6", f"--out={tmp_path}"]
    options += ["--num_steps=2", "--split=test[10:30]", "--epsilons=0.25,1.0"]
    result = run("linearity", *options, "--epsilons_inf=0.01", "--noise=0.01,0.1")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["networks"]["data_dependent_snr"]
    curve = found["L2"]["adversarial"]
    assert curve["epsilon"] == [0.0, 0.25, 1.0]
    np.testing.assert_allclose(curve["length"]["mean"][1:], [0.25, 1.0], rtol=0.05)
    assert curve["deviation"]["mean"][0] == 0
    assert curve["shared_activations"]["mean"][0] == 1
    np.testing.assert_allclose(
        found["L2"]["random"]["length"]["mean"], curve["length"]["mean"], rtol=1e-5
    )
    assert len(found["Linf"]["adversarial"]["sigma"]["mean"]) == 2
    noise = found["noise"]["pictures"]
    lengths = np.array([0.0, 0.01, 0.1]) * np.sqrt(3072 / 3)
    np.testing.assert_allclose(noise["length"]["mean"], lengths, rtol=0.02)
    assert found["noise"]["random_inputs"]["shared_activations"]["mean"][0] == 1
    for name in ("linearity_L2", "linearity_Linf", "activations"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    assert "| data-dependent SNR | L2 PGA" in result.stdout


def test_spectrum_averages_networks_of_several_seeds(runs, tmp_path, run):
    kernels = np.random.default_rng(0).normal(size=(2, 3072, 10)).astype(np.float32)
    for seed, kernel in enumerate(kernels):
        np.savez(runs / f"own{seed}.npz", **{"last/kernel": kernel})
    own = "tests.support.own_networks:make"
    options = [f"--run={runs / 'seed{seed}'}", f"--network={own}", "--seeds=0,1"]
    options += [f"--variables={runs / 'own{seed}.npz'}", "--examples=6"]
    options += ["--num_steps=2", "--epsilons=", "--epsilons_inf=", f"--out={tmp_path}"]
    result = run("spectrum", *options)
    assert result.returncode == 0, result.stderr
    assert "± standard error over 2 networks (seeds 0, 1)" in result.stdout
    assert f"network {own} has no attribute features" in result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["networks"]) == ["data_dependent_snr", own, "untrained"]
    assert results["seeds"] == [0, 1]
    images = data.load("cifar10_mini", split="test", limit=6).images
    values = [
        np.linalg.svd(
            jacobians(training.load_run(runs / f"seed{seed}").network.params, images)[
                1
            ],
            compute_uv=False,
        ).mean(axis=0)
        for seed in (0, 1)
    ]
    for name, each in (
        ("data_dependent_snr", values),
        (own, np.linalg.svd(kernels.astype(np.float64), compute_uv=False)),
    ):
        curve = results["networks"][name]["singular_values"]["logits"]["clean"]
        error = np.abs(each[0] - each[1]) / 2
        np.testing.assert_allclose(
            curve["mean"], np.mean(each, axis=0), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            curve["standard_error"], error, rtol=1e-2, atol=2e-4 * max(each[0])
        )


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("spectrum", ["--run=RUN", "--seeds=0,1"], ["run", "must have {seed}"]),
        ("linearity", ["--run=RUN/../seed{seed}", "--seeds=0"], ["two or more"]),
        ("spectrum", ["--run=RUN", "--epsilon=8/"], ["epsilon", "8/"]),
        ("linearity", ["--network=absent:f", "--dataset=mnist"], ["out", "required"]),
        ("spectrum", ["--run=RUN", "--run=RUN/../seed0"], ["given more than once"]),
        ("linearity", ["--run=RUN", "--noise=0.1,-1"], ["noise", "-1"]),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(name, arguments, words, runs, run):
    before = sorted(runs.rglob("*"))
    given = [argument.replace("RUN", str(runs / "seed0")) for argument in arguments]
    result = run(name, *given)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(runs.rglob("*")) == before


def test_a_slice_of_a_split_is_read():
    assert options.parse_split("test") == ("test", None, None)
    assert options.parse_split("train[10:]") == ("train", 10, None)
    with pytest.raises(ValueError, match=r"split.*test\[a:b\]"):
        options.parse_split("test[a:b]")
