"""Kills binaries at random moments, and compares with runs that nothing disturbed.

Not a part of the suite, since it takes minutes; run it by hand::

    pytest tests/experiments/kill_often.py
    KILLS=10 SEED=1 pytest tests/experiments/kill_often.py -k sweep

Each case is started KILLS times (2 by default) and killed with SIGKILL after a time
drawn evenly from what the undisturbed run took; then it runs to its end. A run that
ends before it is killed begins anew.
"""

import json
import os
import random
import shutil
import signal
import time

import pytest

from opnorm.runs import checkpoints, read_metrics
from opnorm.training import METHODS

KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("SEED", "0"))
TINY = ["--model=mlp1", "--width=8", "--train_examples=160", "--batch_size=16"]
TRAIN = [*TINY, "--epochs=8", "--checkpoint_every=7", "--log_every=1", "--num_steps=2"]
BOUNDED = {
    f"standard, {how}": ["--spectral_norm_bound=1", f"--spectral_norm_method={how}"]
    for how in ("normalize", "clip")
}
VALIDATED = ["--validation_fraction=0.02", "--validation_examples=40", "--keep_best"]
TRAINED = {method: [f"--method={method}"] for method in METHODS} | BOUNDED
TRAINED["keep_best"] = ["--method=adversarial_only", *VALIDATED]
SWEEP = [*TINY, "--epochs=4", "--grid=learning_rate=1e-3,1e-2", "--seeds=0,1"]
SWEEP += VALIDATED
SWEEP += ["--test_examples=60", "--test_steps=3", "--epsilons=0.1,0.3"]
EVALUATE = ["--split=test[0:120]", "--attack=pga num_steps=5", "--part_size=8"]
EVALUATE += ["--attack=deepfool num_steps=3", "--batch_size=8", "--check_examples=8"]


@pytest.fixture
def disturb(start, run, tmp_path):
    """``(name, options, flag) ->`` directories without and with kills."""

    def disturb(name, options, flag):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        began = time.monotonic()
        result = run(name, *options, f"--{flag}={whole}")
        took = time.monotonic() - began
        assert result.returncode == 0, result.stderr
        moments = random.Random(f"{SEED} {name} {options}")
        kills = 0
        while kills < KILLS:
            process = start(name, *options, f"--{flag}={killed}")
            moment = moments.uniform(0, took)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                # It had ended: with what is compiled by now it takes less time.
                took = moment
                shutil.rmtree(killed)
                continue
            kills += 1
            files = sum(path.is_file() for path in killed.rglob("*"))
            print(f"{name}: killed after {moment:.2f} s, {files} files there")
        result = run(name, *options, f"--{flag}={killed}")
        assert result.returncode == 0, result.stderr
        left = [p for p in killed.rglob("*.orbax-checkpoint-tmp*") if p.exists()]
        assert not left
        return whole, killed

    return disturb


def saved(directory, folder=checkpoints.FOLDER):
    """Checksums of all that the last checkpoint holds, and the metrics."""
    steps = checkpoints._steps(directory / folder)
    body, _ = checkpoints._read(directory / folder / str(steps[0]))
    return steps[0], body["leaves"], read_metrics(directory)


@pytest.mark.parametrize("case", TRAINED)
def test_training(disturb, case):
    whole, killed = disturb("train", [*TRAIN, *TRAINED[case]], "run")
    assert saved(whole) == saved(killed)
    if case == "keep_best":
        assert saved(whole, checkpoints.BEST) == saved(killed, checkpoints.BEST)
    assert [line["step"] for line in read_metrics(whole)] == list(range(1, 81))


def test_evaluation(disturb, run, tmp_path):
    trained = tmp_path / "trained"
    assert run("train", *TRAIN, f"--run={trained}").returncode == 0
    both = disturb("evaluate", [f"--run={trained}", *EVALUATE], "out")
    cards = [json.loads((folder / "evaluation.json").read_text()) for folder in both]
    for card in cards:
        for attack in card["attacks"].values():
            attack.pop("seconds")
    compared = ("attacks", "best_known", "clean_accuracy", "checks", "spectrum")
    for name in compared:
        assert cards[0][name] == cards[1][name]


def test_sweep(disturb):
    both = disturb("sweep", SWEEP, "directory")
    results = [json.loads((folder / "results.json").read_text()) for folder in both]
    points = [
        [
            (p["point"], p["accuracy"], p.get("test"), p["state"])
            for p in found["points"]
        ]
        for found in results
    ]
    assert points[0] == points[1]
    assert len(points[0]) == 2
    runs = sorted(p.name for p in both[0].iterdir() if p.is_dir())
    assert len(runs) == 4
    for name in runs:
        for folder in (checkpoints.FOLDER, checkpoints.BEST):
            assert saved(both[0] / name, folder) == saved(both[1] / name, folder)
