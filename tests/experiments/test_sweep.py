"""Grids, jobs and tables of sweeps, and the points that a sweep runs or skips."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from experiments.sweep import launch, points, tables
from opnorm import data, extras, runs, training
from opnorm.training import Config

ROOT = Path(__file__).parent.parent.parent
# Calls the binary again and again in one process, as the flags of several binaries do
# not fit into the process of the tests.
_SERVER = """
import contextlib, dataclasses, io, json, sys
from absl import flags
from experiments.common import (cli, options)
from experiments.sweep import __main__ as sweep
from opnorm import training

def fill():
    raise OSError(28, "No space left on device", "/disk/x")

def interrupt():
    raise KeyboardInterrupt

def show():
    print(json.dumps(dataclasses.asdict(options.config_from_flags(training.Config))))

mains = {"sweep": sweep.main, "show": show, "fill": fill, "interrupt": interrupt}
for line in sys.stdin:
    request = json.loads(line)
    flags.FLAGS.unparse_flags()
    sys.argv = ["sweep", *request["arguments"]]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run(mains[request["main"]])
        except SystemExit as end:
            code = end.code or 0
    answer = {"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}
    print(json.dumps(answer), flush=True)
"""
TINY = [
    "--model=mlp1",
    "--width=8",
    "--train_examples=48",
    "--batch_size=16",
    "--test_examples=30",
    "--test_steps=2",
]
VALIDATED = [*TINY, "--validation_fraction=0.02", "--validation_examples=40"]


@pytest.fixture(scope="module")
def call(serve):
    """``(*arguments, main="sweep") ->`` returncode, stdout, stderr."""
    ask = serve(_SERVER)

    def call(*arguments, main="sweep"):
        answer = ask({"main": main, "arguments": [str(a) for a in arguments]})
        return SimpleNamespace(**answer)

    return call


@pytest.fixture(scope="module")
def swept(call, tmp_path_factory):
    """A finished sweep: its directory, its flags, and what it printed."""
    directory = tmp_path_factory.mktemp("sweep")
    options = [*VALIDATED, "--epochs=2", "--grid=learning_rate=1e-3,1e-2", "--seeds=0"]
    options += ["--epsilons=0.1,0.3", f"--directory={directory}"]
    result = call(*options)
    assert result.returncode == 0, result.stderr
    return directory, options, result


def read(directory, name="results.json"):
    return json.loads((directory / name).read_text())


def test_every_point_is_trained_measured_and_ranked(swept):
    directory, _, result = swept
    names = sorted(p.name for p in directory.iterdir() if p.is_dir())
    assert names == ["learning_rate=0.001_seed=0", "learning_rate=0.01_seed=0"]
    found = read(directory)
    assert found["sorted_by"] == "L2 PGA-2, eps 0.1"
    ranked = [p["accuracy"]["L2 PGA-2, eps 0.1"]["mean"] for p in found["points"]]
    assert len(ranked) == 2
    assert ranked == sorted(ranked, reverse=True)
    for point in found["points"]:
        rate = point["point"]["learning_rate"]
        name = f"learning_rate={rate:g}_seed=0"
        config = training.load_run(directory / name).config
        assert (config.learning_rate, config.epochs, config.seed) == (rate, 2, 0)
        accuracy = [cell["mean"] for cell in point["accuracy"].values()]
        assert list(point["accuracy"]) == [
            "clean",
            "L2 PGA-2, eps 0.1",
            "L2 PGA-2, eps 0.3",
        ]
        # A longer perturbation leaves at most as much right as a shorter one here.
        assert accuracy == sorted(accuracy, reverse=True)
        assert accuracy[0] > 0
        own = read(directory / name, "sweep_result.json")
        assert own["clean"]["mean"] == accuracy[0]
        assert own["examples"] == 40
    assert (found["split"], found["measurement"]["test_examples"]) == ("validation", 30)
    table = (directory / "table.md").read_text()
    assert table in result.stdout
    lines = table.splitlines()
    best = found["points"][0]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        f"{best['point']['learning_rate']:g}",
        *(f"{100 * cell['mean']:.1f} %" for cell in best["accuracy"].values()),
        *(f"{100 * cell['mean']:.1f} %" for cell in best["test"].values()),
        "1 of 1 done",
    ]
    words = "2 of 2 runs have ended; best first by L2 PGA-2, eps 0.1 on the validation"
    assert words in lines[-1]


def test_points_are_compared_on_held_out_images_and_the_best_alone_is_tested(swept):
    directory, _, _ = swept
    best, other = read(directory)["points"]
    assert list(best["test"]) == list(best["accuracy"])
    assert "test" not in other
    names = [
        f"learning_rate={p['point']['learning_rate']:g}_seed=0" for p in (best, other)
    ]
    assert not (directory / names[1] / "sweep_test.json").exists()
    run = training.load_run(directory / names[0])
    test_set = data.load("cifar10_mini", split="test", limit=30)
    validation_set = training.load_validation_set(run.config, limit=40)
    for examples, found in ((validation_set, "accuracy"), (test_set, "test")):
        logits = np.asarray(run.network(examples.images / np.float32(255)))
        accuracy = np.mean(logits.argmax(1) == examples.labels)
        assert best[found]["clean"]["mean"] == pytest.approx(accuracy)


def test_the_command_in_the_results_can_be_called_again(swept):
    directory, options, _ = swept
    command = read(directory)["command"]
    assert command == ["opnorm", "sweep", *options]


@pytest.mark.parametrize("name", ["table2", "table2_50000"])
def test_committed_tables_are_made_of_committed_results(name):
    folder = ROOT / "experiments" / "results" / name / "sweep_snr"
    assert tables.text(read(folder)) == (folder / "table.md").read_text()


def test_a_second_call_runs_nothing_and_a_half_done_run_goes_on(call, swept):
    directory, options, _ = swept
    before = read(directory)["points"]
    assert call(*options).stderr == "2 of 2 points were measured earlier\n"
    assert read(directory)["points"] == before
    # As if the process had been killed after the first of the two epochs.
    run = directory / "learning_rate=0.01_seed=0"
    forged = read(run, "sweep_result.json") | {"clean": {"mean": 1.0}}
    (run / "sweep_result.json").write_text(json.dumps(forged))
    shutil.rmtree(run / "checkpoints" / "6")
    kept = (run / "checkpoints" / "3").stat().st_mtime_ns
    state = call(*options, "--dry_run").stdout
    assert "learning_rate=0.01_seed=0  | begun" in state
    assert "learning_rate=0.001_seed=0 | done" in state
    result = call(*options)
    assert "run 1 of 1: learning_rate=0.01_seed=0" in result.stderr
    assert "1 of 2 points were measured earlier" in result.stderr
    assert (run / "checkpoints" / "3").stat().st_mtime_ns == kept
    assert (run / "checkpoints" / "6").exists()
    again = read(directory)["points"]
    assert [p["accuracy"] for p in again] == [p["accuracy"] for p in before]


def test_seeds_are_averaged_and_what_is_trained_is_only_measured_anew(
    call, swept, tmp_path
):
    directory, options, _ = swept
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    options = [o for o in options if not o.startswith("--grid")]
    options += ["--grid=learning_rate=0.01", "--seeds=0,1", "--epsilons=0.1"]
    result = call(*options, f"--directory={tmp_path}")
    assert result.returncode == 0, result.stderr
    (point,) = read(tmp_path)["points"]
    cell = point["accuracy"]["clean"]
    first, second = cell["seeds"]
    assert first != second
    assert cell["mean"] == pytest.approx((first + second) / 2)
    assert cell["standard_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    shown = f"{100 * cell['mean']:.1f} ± {100 * cell['standard_deviation']:.1f} %"
    assert shown in (tmp_path / "table.md").read_text()
    # The first seed had been trained, and measured at two lengths.
    name = "learning_rate=0.01_seed=0"
    again, before = (
        read(folder / name, "sweep_result.json") for folder in (tmp_path, directory)
    )
    assert len(before["attacked"]) == 2
    assert again["attacked"] == before["attacked"][:1]
    for folder in (tmp_path, directory):
        steps = {path.name for path in (folder / name / "checkpoints").iterdir()}
        assert steps == {"3", "6"}
    assert result.stderr.count("step 6/6") == 1


def test_a_point_that_fails_is_in_the_table_and_the_others_go_on(call, tmp_path):
    options = [*TINY, "--epochs=1", "--grid=batch_size=64,16"]
    options.append(f"--directory={tmp_path}")
    result = call(*options)
    assert result.returncode == 0, result.stderr
    # Without a validation split nothing is ranked, and that is told at once.
    assert result.stderr.startswith(f"{tables.UNRANKED}\nrun 1 of 2")
    assert tables.UNRANKED in (tmp_path / "table.md").read_text()
    found = read(tmp_path)
    assert (found["split"], found["sorted_by"]) == ("test", None)
    failed, done = found["points"]
    assert (
        read(tmp_path / "batch_size=16_seed=0", "sweep_result.json")["examples"] == 30
    )
    assert done["state"] == "1 of 1 done"
    assert done["point"] == {"batch_size": 16}
    assert failed["state"].startswith("0 of 1 done; 1 failed: batch_size is 64")
    assert failed["state"] in (tmp_path / "table.md").read_text()
    # It is tried again only if asked for.
    assert call(*options).stderr.endswith("2 of 2 points were measured earlier\n")
    assert "run 1 of 1: batch_size=64_seed=0" in call(*options, "--retry").stderr


def test_the_best_checkpoint_of_a_run_is_measured_on_request(call, swept, tmp_path):
    directory, options, _ = swept
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    name = "learning_rate=0.01_seed=0"
    shutil.rmtree(tmp_path / name)
    # Two epochs of the first run are there already: its best was not kept.
    options = [o for o in options if not o.startswith(("--grid", "--directory"))]
    options += ["--grid=learning_rate=0.01", f"--directory={tmp_path}", "--keep_best"]
    result = call(*options, "--sort_by=clean")
    assert result.returncode == 0, result.stderr
    run = training.load_run(tmp_path / name, checkpoint="best")
    own = read(tmp_path / name, "sweep_result.json")
    assert own["step"] == run.step
    assert own["clean"]["mean"] == pytest.approx(run.metadata["best"]["accuracy"])
    (point,) = read(tmp_path)["points"]
    assert point["test_runs"][name]["step"] == run.step


def test_results_of_earlier_versions_are_read():
    folder = ROOT / "experiments" / "results" / "table2" / "sweep_snr"
    found = read(folder)
    measured = {**found["measurement"], "p": float(found["measurement"]["p"])}
    stored = next(iter(found["points"][0]["runs"].values()))["measurement"]
    assert points._as_json(points.Measurement(**measured)) == stored


def test_jobs_run_what_local_runs_run(call, swept, tmp_path):
    directory, options, _ = swept
    options = [*options[:-1], "--seeds=0", f"--directory={tmp_path}"]
    jobs = ["--launcher=submitit", "--cluster=debug", "--gpus=0"]
    result = call(*options, *jobs)
    assert result.returncode == 0, result.stderr
    assert "0 jobs are at work, 2 submitted" in result.stderr
    for name in ("learning_rate=0.001_seed=0", "learning_rate=0.01_seed=0"):
        ours, theirs = (
            read(folder / name, "sweep_result.json") for folder in (tmp_path, directory)
        )
        assert ours["status"] == "done"
        assert ours["clean"] == theirs["clean"]
        assert ours["attacked"] == theirs["attacked"]
    assert "0 jobs are at work, 0 submitted" in call(*options, *jobs).stderr


class Executor:
    """Takes jobs, and runs none."""

    submitted: ClassVar[list] = []

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def batch(self):
        import contextlib

        return contextlib.nullcontext()

    def submit(self, task, point, *arguments):
        Executor.submitted.append((point.name, self.cluster, self.parameters))
        paths = SimpleNamespace(stderr="LOG", folder=self.folder)
        return SimpleNamespace(job_id="12_3", paths=paths, done=lambda: True)


def test_only_what_no_job_is_at_work_on_is_submitted(tmp_path, monkeypatch):
    import submitit

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(Executor, "submitted", [])
    chosen = [points.Point(n, {}, Config(), str(tmp_path / n)) for n in ("a", "b", "c")]
    measured = points.Measurement(2.0, (0.5,), 10, 100)
    cluster = launch.Cluster("slurm", "gpu", 4, 8, 1.5, 2)

    process = subprocess.Popen(["sleep", "60"])
    try:
        for name, number in (("a", process.pid), ("b", 2**22 + 1)):
            record = {"cluster": "local", "job_id": str(number), "folder": "jobs"}
            runs.RunDirectory(tmp_path / name).write_json("sweep_job.json", record)
        launched = launch.launch_jobs(
            chosen,
            measured,
            download=False,
            cluster=cluster,
            folder=tmp_path / "jobs",
            wait=True,
            retry=False,
        )
        # a's process is at work, b's is gone, c has had no job. The new jobs end
        # without a result.
        ended = [next(launched), next(launched)]
        launched.close()
    finally:
        process.kill()
        process.wait()
    assert [(point.name, note) for point, note in ended] == [
        ("b", "its job left no result; see LOG"),
        ("c", "its job left no result; see LOG"),
    ]
    assert [name for name, *_ in Executor.submitted] == ["b", "c"]
    _, kind, parameters = Executor.submitted[0]
    assert kind == "slurm"
    assert parameters["slurm_partition"] == "gpu"
    assert parameters["slurm_array_parallelism"] == 2
    assert (parameters["timeout_min"], parameters["gpus_per_node"]) == (90, 4)
    record = json.loads((tmp_path / "c" / "sweep_job.json").read_text())
    assert record["job_id"] == "12_3"
    assert points.describe_state(chosen[2], measured) == "submitted, job 12_3"


@pytest.mark.parametrize("text", ["", "3", "[1]", '{"status": "done"}', "[" * 100_000])
def test_a_result_of_any_shape_is_one_line(tmp_path, text):
    point = points.Point("a", {}, Config(), str(tmp_path))
    (tmp_path / "sweep_result.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep_result.json is damaged.*remove it"):
        points.read_result(point, points.Measurement(2.0, (0.5,), 10, 100))


def test_without_submitit_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    cluster = launch.Cluster("slurm", None, 1, 8, 1.0, None)
    measured = points.Measurement(2.0, (0.5,), 10, 100)
    launched = launch.launch_jobs(
        [],
        measured,
        download=False,
        cluster=cluster,
        folder=tmp_path,
        wait=True,
        retry=False,
    )
    with pytest.raises(extras.MissingPackage, match=r"submitit.*\[cluster\]"):
        next(launched)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid=wieght=1,2"], ["wieght", "weight"]),
        (["--grid=weight=1,two"], ["weight=1,two", "'two'", "float"]),
        (["--grid=augment=maybe"], ["augment", "'maybe'", "bool"]),
        (["--grid=width=8,1.5"], ["width", "'1.5'", "int"]),
        (["--grid=weight="], ["weight=", "empty"]),
        (["--grid=weight=1,,2"], ["weight=1,,2", "empty"]),
        (["--grid=weight=1,1.0"], ["weight", "once"]),
        (["--grid=weight=1", "--grid=weight=2"], ["weight", "more than once"]),
        (["--grid=roth_weight", "--grid=weight=2"], ["weight", "more than once"]),
        (["--grid=roth_snrr"], ["roth_snrr", "roth_snr"]),
        (["--grid=seed=1,2"], ["--seeds"]),
        (["--grid=step_size=1", "--grid=step_ratio=1"], ["step_size", "step_ratio"]),
        (["--grid=weight=1,-1"], ["weight=-1_seed=0", "weight is -1"]),
        (["--grid=step_ratio=1"], ["step_ratio=1_seed=0", "step_size"]),
        (["--seeds=0,0"], ["seeds"]),
        (["--epsilons=0.1,-1"], ["epsilons"]),
        (
            ["--sort_by=0.7", "--epsilons=0.1", "--validation_fraction=0.1"],
            ["sort_by", "0.7", "clean", "0.1"],
        ),
        (["--sort_by=clean"], ["sort_by", "--validation_fraction"]),
        (["--keep_best"], ["keep_best", "--validation_fraction"]),
        (["--validation_fraction=1"], ["validation_fraction is 1.0"]),
        (["--grid=validation_fraction=0.1,0.2"], ["--validation_fraction"]),
        (["--preset=roth_cnn7_snt"], ["roth_cnn7_snt", "roth_cnn7_snr"]),
        (["--preset=regularization_view_tiny_imagenet_at4"], ["--dataset=tiny_image"]),
        (["--directory="], ["directory"]),
    ],
)
def test_bad_sweeps_are_one_line_and_touch_nothing(call, arguments, words, tmp_path):
    result = call(f"--directory={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        ("fill", 1, "sweep: /disk/x: No space left on device\n"),
        ("interrupt", 130, "sweep: interrupted\n"),
    ],
)
def test_the_operating_systems_errors_and_ctrl_c_are_one_line(call, main, code, line):
    result = call(main=main)
    assert (result.returncode, result.stderr) == (code, line)


def test_a_sweep_in_use_and_another_programs_folder_are_refused(call, swept, tmp_path):
    directory, options, _ = swept
    with runs.RunDirectory(directory).locked():
        result = call(*options)
    assert result.returncode == 1
    assert f"sweep: {directory} is in use by process {os.getpid()}" in result.stderr
    (tmp_path / "mine.txt").write_text("mine")
    result = call(*options[:-1], f"--directory={tmp_path}")
    assert result.returncode == 2
    assert "is not the directory of a run: it holds mine.txt" in result.stderr
    # Nor is a point's, and its failure is not noted there.
    runs.RunDirectory(tmp_path / "sweep").mark()
    point = tmp_path / "sweep" / "learning_rate=0.001_seed=0"
    point.mkdir()
    (point / "mine.txt").write_text("mine")
    result = call(*options[:-1], f"--directory={tmp_path / 'sweep'}")
    assert result.returncode == 2
    assert f"{point} is not the directory of a run" in result.stderr
    assert [path.name for path in point.iterdir()] == ["mine.txt"]


def test_a_directory_of_another_sweep_is_refused(call, swept):
    _, options, _ = swept
    result = call(*options, "--epochs=3")
    assert result.returncode == 2
    assert "holds another run: epochs is 2 there and 3 here" in result.stderr


def test_points_are_trained_on_what_their_configurations_say():
    config = training.Config(train_examples=20, image_size=20, random_labels=1.0)
    expected = training.load_train_set(config)
    found = points._train_set(points._source(config), download=False)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_points_of_named_and_derived_grids(call, tmp_path):
    result = call(
        "--preset=roth_cnn7_at_l2",
        "--init_from=runs/standard",
        "--grid=step_ratio=1,5",
        "--grid=num_steps=5,10",
        "--grid=milestones=none",
        "--seeds=3",
        f"--directory={tmp_path / 'run'}",
        "--dry_run",
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert not (tmp_path / "run").exists()
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]]
    assert rows == [
        f"num_steps={steps}_milestones=None_step_ratio={ratio}_seed=3"
        for steps in (5, 10)
        for ratio in (1, 5)
    ]
    result = call(
        "--grid=roth_at_l2", "--method=adversarial", "--dry_run", "--directory=x"
    )
    assert len(result.stdout.splitlines()) == 2 + 14 * 5 * 11


def test_flags_replace_a_preset_and_a_preset_the_defaults(call):
    def config(*arguments):
        result = call(*arguments, main="show")
        assert result.returncode == 0, result.stderr
        return SimpleNamespace(**json.loads(result.stdout)), result.stderr

    plain, _ = config()
    assert (plain.weight, plain.batch_size, plain.width) == (1.0, 64, 16)
    preset, warning = config("--preset=roth_cnn7_snr")
    assert (preset.weight, preset.batch_size, preset.width) == (3e-2, 32, 128)
    assert preset.epochs == 50
    assert "init_from" in warning
    # Given as the default is given all the same.
    both, warning = config(
        "--preset=roth_cnn7_snr", "--weight=1.0", "--augment", "--init_from=runs/a"
    )
    assert (both.weight, both.augment, both.batch_size) == (1.0, True, 32)
    assert warning == ""


def test_presets_are_listed(call, tmp_path):
    result = call("--list_presets", f"--directory={tmp_path / 'run'}")
    assert result.returncode == 0
    assert "roth_cnn7_at_l2" in result.stdout
    assert "roth_snr" in result.stdout
    one = call("--list_presets", "--preset=roth_cnn7_at_l2").stdout
    assert "1.75" in one
    assert "0.875" in one
    assert not (tmp_path / "run").exists()
