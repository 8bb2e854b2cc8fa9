"""A paper's table from its presets, at a tiny size."""

import json

TINY = [
    "--presets=roth_cnn7_standard,roth_cnn7_global_snr",
    "--dataset=cifar10_mini",
    "--model=mlp1",
    "--width=8",
    "--train_examples=48",
    "--batch_size=16",
    "--standard_epochs=2",
    "--epochs=1",
    "--test_examples=20",
    "--test_steps=1",
    "--l2_epsilons=0.5",
    "--linf_epsilons=0.01",
]


def test_rows_start_from_the_first(run, tmp_path):
    done = run("reproduce", *TINY, f"--run={tmp_path}")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert list(rows) == ["roth_cnn7_standard", "roth_cnn7_global_snr"]
    assert [row["steps"] for row in rows.values()] == [6, 3]
    first, second = (row["config"] for row in rows.values())
    assert first["init_from"] is None
    assert second["init_from"] == str(tmp_path / "roth_cnn7_standard")
    # Flags replace values of presets, and nothing else.
    assert (first["optimizer"], second["optimizer"]) == ("adam", "rmsprop")
    assert second["weight"] == 3e-4
    for row in rows.values():
        for norm, epsilon in (("L2", 0.5), ("Linf", 0.01)):
            assert row["accuracy"][norm]["epsilon"] == [0.0, epsilon]
            clean, attacked = row["accuracy"][norm]["mean"]
            assert 0 <= attacked <= clean + 1e-9
    table = (tmp_path / "table.md").read_text()
    assert "cnn7 global snr" in table
    assert "81.5 %" in table
    for name in ("accuracy_L2.png", "accuracy_Linf.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_usage_errors_come_before_any_run(run, tmp_path):
    done = run(
        "reproduce", *TINY, "--presets=roth_cnn8_standard", f"--run={tmp_path / 'run'}"
    )
    assert done.returncode == 2
    assert "preset 'roth_cnn8_standard'" in done.stderr
    # Rows are trained on the same images.
    presets = "--presets=roth_cnn7_standard,farnia_cifar10_mlp1_erm"
    done = run("reproduce", *TINY, presets, f"--run={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "image_size is None in the first and 28 in farnia" in done.stderr
    assert not (tmp_path / "run").exists()
