"""The binaries as a user runs them: results, kill -9, damage, usage errors."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as listing
from experiments.common import help_text
from opnorm import reports, runs, training

TINY = [
    "--model=mlp1",
    "--width=8",
    "--train_examples=160",
    "--batch_size=16",
]
SNR = [*TINY, "--method=data_dependent_snr", "--epochs=8", "--checkpoint_every=7"]
SNR += ["--log_every=1"]
COMPARED = [*TINY, "--epochs=1", "--seeds=0,1", "--test_examples=40"]
COMPARED += ["--epsilons=0.25,0.5", "--test_steps=2", "--attack_steps=2"]
# All batches of attacks have one size, and a program is compiled for each size.
MEASURED = ["--examples=30", "--batch_size=16", "--p=inf", "--epsilons=0.004,0.02"]


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A run directory, to be read only."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    result = run("train", *SNR, f"--run={directory}")
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory):
    """A directory of the main job with its networks, to be read only."""
    directory = tmp_path_factory.mktemp("compared")
    result = run("equivalence", *COMPARED, f"--run={directory}")
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def evaluated(run, trained, tmp_path_factory):
    """A run directory with its evaluation, to be read only."""
    directory = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained, directory, dirs_exist_ok=True)
    options = [*MEASURED, "--attack=pga num_steps=20", "--check_examples=8"]
    result = run("evaluate", f"--run={directory}", *options)
    assert result.returncode == 0, result.stderr
    return directory


def variables(directory):
    return training.load_run(directory).network.variables


def assert_same_parameters(first, second):
    import jax

    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--method=magic", "--run=RUN"], ["method", "magic", "standard"]),
        ("train", ["--dataset=cifar11", "--run=RUN"], ["dataset", "cifar11"]),
        ("train", ["--dataset=mnist", "--run=RUN", "--data_dir=/nowhere"], ["mnist"]),
        ("train", ["--batch_sise=3"], ["batch_sise"]),
        ("train", ["--clip_norm=much"], ["clip_norm", "much"]),
        ("evaluate", ["--run=/nowhere/at/all"], ["/nowhere/at/all"]),
        ("evaluate", ["--run=RUN", "--attack=pgd"], ["attack", "pgd", "pga"]),
        ("evaluate", ["--run=RUN", "--split=test[a:b]"], ["split", "test[a:b]"]),
        ("equivalence", ["--run=RUN", "--methods=magic"], ["methods", "magic"]),
        (
            "equivalence",
            ["--run=RUN", "--train_examples=8", "--batch_size=16"],
            ["batch_size is 16", "at most the 8 examples"],
        ),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    run, name, arguments, words, tmp_path
):
    directory = tmp_path / "run"
    result = run(name, *(a.replace("RUN", str(directory)) for a in arguments))
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert not directory.exists()


def test_none_takes_back_the_value_of_a_preset(run, tmp_path):
    flags = ["--preset=roth_cnn7_standard", "--schedule=cosine", "--dataset=cifar10"]
    flags += ["--data_dir=/nowhere", f"--run={tmp_path / 'run'}"]
    refused = run("train", *flags)
    assert "milestones is '80,120', which schedule 'cosine' does not" in refused.stderr
    allowed = run("train", *flags, "--milestones=none", "--clip_norm=None")
    assert "milestones" not in allowed.stderr
    assert "cifar10" in allowed.stderr
    assert "/nowhere" in allowed.stderr


def test_help_lists_the_flags_in_groups_with_their_allowed_values(run):
    result = run("train", "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    groups = [text.index(f"{group}: --") for group in help_text.GROUPS]
    assert groups == sorted(groups)
    assert "--[no]augment" in text
    for allowed in (
        "one of standard, adversarial,",
        "one of adam, sgd, rmsprop",
        "one of pixels, standardized",
        "a number or a fraction such as 8/255",
    ):
        assert allowed in text
    assert "`" not in text
    assert ":func:" not in text


def test_the_commands_are_listed(capsys):
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = Path(listing.__file__).parent
    names = {path.parent.name for path in folder.glob("*/__main__.py")}
    names |= {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    assert {line.split()[0] for line in lines[2:]} == names
    assert max(map(len, lines)) <= 140
    assert listing.main(["spectrun"]) == 2
    assert "did you mean spectrum?" in capsys.readouterr().err


def test_a_killed_and_damaged_run_resumes_to_bit_identical_parameters(
    run, start, trained, tmp_path
):
    killed = tmp_path / "killed"
    process = start("train", *SNR, f"--run={killed}")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [p for p in (killed / "checkpoints").glob("*") if p.name.isdigit()]
        if len(steps) >= 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    steps = sorted(
        (p for p in (killed / "checkpoints").glob("*") if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    damaged = max(
        (file for file in steps[-1].rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(bytes(content))
    resumed = run("train", *SNR, f"--run={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{int(steps[-1].name)}" in resumed.stderr
    assert_same_parameters(variables(trained), variables(killed))
    logged = [line["step"] for line in runs.read_metrics(killed)]
    assert logged == list(range(1, 81))


def test_the_main_job_runs_small_and_is_repeatable_from_its_directory(
    run, compared, tmp_path
):
    results = json.loads((compared / "results.json").read_text())
    assert list(results["methods"]) == [
        "standard",
        "adversarial",
        "data_dependent_snr",
        "global_snr",
    ]
    for method in results["methods"].values():
        assert method["accuracy"]["epsilon"] == [0.0, 0.25, 0.5]
        assert len(method["seeds"]["clean_accuracy"]) == 2
        assert np.all(np.diff(method["singular_values"]["mean"]) <= 0)
    for name in ("accuracy.png", "singular_values.png", "table.md"):
        assert (compared / name).stat().st_size > 0
    again = tmp_path / "again"
    shutil.copytree(compared, again)
    # As another user may have left it: a link to a file of the user's, another number.
    mine = tmp_path / "mine.txt"
    mine.write_text("the user's own text")
    for name in ("accuracy.png", "table.md"):
        (again / name).unlink()
        (again / name).symlink_to(mine)
    forged = again / "adversarial-seed1" / "measured.json"
    content = json.loads(forged.read_text())
    forged.write_text(json.dumps(content | {"clean_accuracy": 1.0}))
    done = run("equivalence", *COMPARED, f"--run={again}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is taken from an earlier measurement") == 7
    assert f"{forged} is damaged, was edited" in done.stderr
    repeated = json.loads((again / "results.json").read_text())
    assert repeated["methods"] == results["methods"]
    assert mine.read_text() == "the user's own text"
    assert (again / "accuracy.png").read_bytes()[1:4] == b"PNG"


def test_a_trained_network_can_be_evaluated(evaluated):
    found = json.loads((evaluated / "evaluation.json").read_text())
    curve = found["attacks"]["pga keep=success num_steps=20"]
    assert curve["epsilon"][0] == 0
    assert curve["mean"][0] == pytest.approx(found["clean_accuracy"])
    assert all(np.diff(curve["mean"]) <= 0)
    among_correct = np.divide(curve["mean"], found["clean_accuracy"])
    np.testing.assert_allclose(curve["conditional"], among_correct, rtol=1e-12)
    assert len(found["checks"]) == 13
    for name in ("accuracy.png", "distances.png", "evaluation.md"):
        assert (evaluated / name).stat().st_size > 0


def test_data_are_checked_before_training(run, tmp_path):
    for name in ("train/a/0", "train/b/0", "test/a/0", "test/b/0", "test/b/1"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:45])
    directory = tmp_path / "run"
    flags = ["--model=mlp1", "--check_data", "--image_size=8", f"--run={directory}"]
    result = run("train", *flags, f"--dataset=image_folder:{tmp_path}")
    assert result.returncode == 2
    assert "check_data: 2 images of split train can be read" in result.stderr
    assert "test/b/1.png cannot be read" in result.stderr.splitlines()[-1]
    assert not directory.exists()


def test_a_network_is_evaluated_on_images_that_it_takes_only(run, trained, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        image.save(tmp_path / split / "a" / "0.png")
    out = tmp_path / "out"
    flags = [f"--dataset=folder:{tmp_path}", f"--out={out}"]
    result = run("evaluate", f"--run={trained}", *flags)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "images of (8, 8, 3) and 1 classes" in result.stderr
    assert not out.exists()


def test_a_killed_and_damaged_evaluation_resumes_to_the_same_numbers(
    run, start, trained, tmp_path
):
    options = [f"--run={trained}", "--split=test[100:164]", "--nospectrum"]
    options += ["--attack=pga num_steps=3", "--attack=deepfool num_steps=3"]
    options += ["--part_size=4", "--batch_size=4"]
    options += ["--epsilons=0.1,0.3", "--check_examples=0"]
    whole = run("evaluate", *options, f"--out={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    process = start("evaluate", *options, f"--out={killed}")
    deadline = time.monotonic() + 120
    parts = killed / "evaluation"
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(parts.glob("*.npz"))) >= 4:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the evaluation ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    saved = sorted(parts.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    content = bytearray(saved[0].read_bytes())
    content[len(content) // 2] ^= 0xFF
    saved[0].write_bytes(bytes(content))
    # An edited one keeps its digest, and its checksums are right.
    with np.load(saved[1]) as stored:
        edited = {name: stored[name] for name in stored.files}
    edited["success"] = ~edited["success"]
    np.savez_compressed(saved[1], **edited)
    kept = {file: file.stat().st_mtime_ns for file in saved[2:]}
    resumed = run("evaluate", *options, f"--out={killed}")
    assert resumed.returncode == 0, resumed.stderr
    for file in saved[:2]:
        assert f"{file} is damaged or was edited" in resumed.stderr
    assert "of 16 pieces of pga keep=success num_steps=3 were" in resumed.stdout
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())
    first, second = (
        json.loads((directory / "evaluation.json").read_text())
        for directory in (tmp_path / "whole", killed)
    )
    for card in (first, second):
        assert card["examples"] == 64
        for attack in card["attacks"].values():
            attack.pop("seconds")
            assert attack.pop("reused") <= attack["pieces"] == 16
    assert first["attacks"] == second["attacks"]
    assert first["best_known"] == second["best_known"]


def test_directories_in_use_or_of_another_program_are_refused(run, trained, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"accuracy": 1}')
    evaluate = ["evaluate", f"--run={trained}", "--examples=2", "--check_examples=0"]
    result = run(*evaluate, f"--out={tmp_path}")
    assert result.returncode == 2
    assert f"{tmp_path} is not the directory of a run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]
    with runs.RunDirectory(trained).locked():
        for command in (["train", *SNR, f"--run={trained}"], evaluate):
            result = run(*command)
            assert result.returncode == 1
            assert len(result.stderr.strip().splitlines()) == 1, result.stderr
            assert f"{trained} is in use by process {os.getpid()}" in result.stderr


def test_a_later_attack_can_only_lower_what_is_best_known(
    run, evaluated, compared, tmp_path
):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    card = tmp_path / "evaluation.json"
    baseline = tmp_path / "baseline.json"

    def evaluate(directory, *options):
        options = [f"--out={tmp_path}", *MEASURED, *options]
        options += ["--nospectrum", "--check_examples=0"]
        result = run("evaluate", f"--run={directory}", *options)
        assert result.returncode == 0, result.stderr
        return json.loads(card.read_text())

    strong = json.loads(card.read_text())["best_known"]["Linf"]
    noise = "uniform_noise num_draws=100"
    found = evaluate(tmp_path, f"--attack={noise}")
    weak, alone = found["best_known"]["Linf"], found["attacks"][noise]
    assert weak["mean"] == strong["mean"] != alone["mean"]
    assert weak["attacks"] == ["pga keep=success num_steps=20", noise]
    # Another network's results are not mixed with these.
    baseline.write_text(card.read_text())
    other = compared / "standard-seed0"
    saved = tmp_path / "attacked"
    save = ["--epsilons=8/255", f"--save_examples={saved}"]
    found = evaluate(other, "--attack=fgm", f"--baseline={baseline}", *save)
    assert found["best_known"]["Linf"]["attacks"] == ["fgm"]
    now, then = (
        json.loads(file.read_text())["best_known"]["Linf"]["mean_distance"]
        for file in (card, baseline)
    )
    assert found["improvement"]["distance_gain"] == pytest.approx(now / then - 1)
    transfers(run, other, tmp_path, saved, found)


def transfers(run, directory, out, saved, found):
    """The images that were saved are those of the evaluation, on their own network."""
    kept = reports.load_examples(saved)
    mean = found["attacks"]["fgm"]["mean"]
    assert mean[1] == pytest.approx(1 - (kept.adversarial | kept.lost).mean())
    network = training.load_run(directory).network
    wrong = np.argmax(network(np.float32(kept.x_adv / 255)), axis=1) != kept.labels
    np.testing.assert_array_equal(wrong, kept.adversarial)
    result = run(
        "evaluate", f"--run={directory}", f"--transfer={saved}", f"--out={out}"
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads((out / "transfer.json").read_text())
    assert measured["attacked"]["mean"] == pytest.approx(1 - wrong.mean())
    assert measured["clean"]["mean"] == pytest.approx(mean[0])
