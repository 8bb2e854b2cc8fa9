"""A run's directory says how to repeat it, and holds nothing half-written."""

import errno
import json
import os
import subprocess
import time
from importlib import metadata

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import runs


def test_flags_versions_and_hardware_are_written_once(tmp_path):
    run = runs.RunDirectory.create(tmp_path / "run", {"lr": 0.1, "seeds": (0, 1)})
    stored = json.loads((tmp_path / "run" / "flags.json").read_text())
    assert stored["flags"] == {"lr": 0.1, "seeds": [0, 1]} == run.flags()
    assert stored["environment"]["jax"]
    assert stored["environment"]["device"]
    assert "git_revision" in stored
    assert stored["environment"]["opnorm"] == runs.version()
    assert stored["command"]
    again = runs.RunDirectory.create(tmp_path / "run", {"lr": 0.1, "seeds": [0, 1]})
    assert again.flags() == run.flags()


def test_other_flags_are_refused_by_name(tmp_path):
    runs.RunDirectory.create(tmp_path, {"lr": 0.1, "p": float("inf")})
    runs.RunDirectory.create(tmp_path, {"lr": 0.1, "p": float("inf")})
    with pytest.raises(ValueError, match=r"lr is 0.1 there and 0.2 here"):
        runs.RunDirectory.create(tmp_path, {"lr": 0.2, "p": float("inf")})


def test_metrics_survive_a_cut_line_and_lose_what_is_repeated(tmp_path):
    run = runs.RunDirectory.create(tmp_path, {})
    for step in (1, 2, 3):
        run.log(step, loss=jnp.float32(step), bad=float("nan"))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    run.log(3, loss=7.0)
    lines = runs.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] == 7.0
    assert lines[0]["bad"] is None


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_file_is_replaced(tmp_path, exists):
    """The directory itself may be a link."""
    target, folder, link = (tmp_path / name for name in ("mine.txt", "run", "link"))
    folder.mkdir()
    link.symlink_to(folder)
    run = runs.RunDirectory.create(link, {"lr": 0.1})
    if exists:
        target.write_text("the user's own text")
    written = ("metrics.jsonl", "out.json", "out.md", "figure.png")
    for name in (*written, f".out.json.{os.getpid()}.opnorm"):
        (folder / name).symlink_to(target)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run.log(1, loss=1.0)
    # A run begins with these.
    run.truncate_metrics(0)
    run.log(1, loss=1.0)
    run.write_json("out.json", [1])
    run.write_text("out.md", "text")
    runs.write_whole(run.figure_path("figure"), b"\x89PNG")
    assert [line["step"] for line in run.read_metrics()] == [1]
    assert (folder / "figure.png").read_bytes() == b"\x89PNG"
    assert sorted(file.name for file in folder.iterdir()) == [
        "figure.png",
        "flags.json",
        "metrics.jsonl",
        "out.json",
        "out.md",
    ]
    assert not any(file.is_symlink() for file in folder.iterdir())
    assert target.exists() == exists
    assert not exists or target.read_text() == "the user's own text"


def test_a_link_to_a_folder_inside_a_run_is_refused(tmp_path):
    run = runs.RunDirectory.create(tmp_path / "run", {"lr": 0.1})
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "7").symlink_to(tmp_path)
    words = "checkpoints/7 is a symbolic link to a folder"
    with pytest.raises(ValueError, match=words):
        runs.RunDirectory.for_results(run.path)
    with pytest.raises(ValueError, match=words):
        runs.RunDirectory.create(run.path, {"lr": 0.1})


def test_json_is_valid_whatever_it_holds(tmp_path):
    run = runs.RunDirectory(tmp_path)
    value = {"a": np.float32(1.5), "b": [np.inf, jnp.arange(2)], "c": None}
    run.write_json("out.json", value)
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == {"a": 1.5, "b": ["inf", [0, 1]], "c": None}
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]
    assert run.figure_path("curve") == tmp_path / "curve.png"


def test_the_directory_of_another_program_is_not_written_into(tmp_path):
    run = runs.RunDirectory(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    (tmp_path / "results.json").write_text('{"environment": {"torch": "2"}}')
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for write in (run.check, run.mark, lambda: run.locked().__enter__()):
        with pytest.raises(ValueError, match=r"checkpoints, metrics.jsonl, results.j"):
            write()
    with pytest.raises(ValueError, match=r"no flags.json; give a new or empty"):
        runs.RunDirectory.create(tmp_path, {})
    with pytest.raises(ValueError, match=r"cannot be made: .*metrics.jsonl is a file"):
        runs.RunDirectory(tmp_path / "metrics.jsonl" / "run").mark()
    assert sorted(tmp_path.rglob("*")) == before
    # A job of an earlier version that was killed knows what it wrote.
    run.mark(own=["results.json"])
    run.check()


@pytest.mark.parametrize(
    "name", ["", ".flags.json.1", "checkpoints/3/meta/_", "3/meta/_", "benchmark.json"]
)
def test_what_opnorm_wrote_before_there_were_marks_is_its_own(tmp_path, name):
    run = runs.RunDirectory(tmp_path / "run")
    if name:
        run.path.joinpath(name).parent.mkdir(parents=True)
        run.path.joinpath(name).write_text('{"environment": {"opnorm": "0.1"}}')
    with run.locked(), pytest.raises(runs.RunInUse):
        run.locked().__enter__()
    run.check()


def test_checkpoints_without_flags_are_nobodys(tmp_path):
    run = runs.RunDirectory(tmp_path)
    run.mark()
    run.log(3, loss=1.0)
    with pytest.raises(ValueError, match=r"metrics.jsonl but no flags.json"):
        runs.RunDirectory.create(tmp_path, {})


def test_only_what_the_dead_left_is_removed(tmp_path, dead):
    run = runs.RunDirectory.create(tmp_path, {})
    long_ago = time.time() - 3600
    (tmp_path / "evaluation").mkdir()
    left, below, alive, young, foreign = (
        tmp_path / name
        for name in (
            f".results.json.{dead}.opnorm",
            f"evaluation/.a.npz.{dead}.opnorm",
            f".results.json.{os.getpid()}.opnorm",
            f".table.md.{dead}.opnorm",
            f".results.json.{dead}",
        )
    )
    for file in (left, below, alive, young, foreign):
        file.write_text("{")
        if file is not young:
            os.utime(file, (long_ago, long_ago))
    with run.locked():
        assert not left.exists()
        assert not below.exists()
        assert alive.exists()
        assert young.exists()
        assert foreign.exists()


@pytest.fixture
def dead():
    """The number of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"flags": 3}',
        b'{"flags": [1, 2]}',
        b"\xff\xfe",
        b'{"flags": ' + b"[" * 100_000,
        b'{"flags": {"lr": ' + b"[" * 99 + b"]" * 99 + b"}}",
    ],
)
def test_flags_of_any_shape_are_one_line_that_names_the_file(tmp_path, content):
    runs.RunDirectory.create(tmp_path, {"lr": 0.1})
    (tmp_path / "flags.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"flags.json is damaged") as refused:
        runs.RunDirectory.create(tmp_path, {"lr": 0.1})
    assert len(str(refused.value)) < 300


def test_metrics_lines_of_another_shape_are_left_out(tmp_path):
    run = runs.RunDirectory.create(tmp_path, {})
    lines = ["3", "[1]", '{"loss": 1}', '{"step": "two"}', "[" * 10_000, '{"step": 7}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert run.read_metrics() == [{"step": 7}]
    run.truncate_metrics(7)


def test_a_full_disk_is_named_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    run = runs.RunDirectory.create(tmp_path, {"lr": 0.1})
    before = (tmp_path / "flags.json").read_bytes()

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: .*flags.json"):
        run.change_flags({"lr": 0.2})
    assert (tmp_path / "flags.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "flags.json"]
    # Another library may raise it, while it writes a figure.
    no_space = pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'")
    with no_space, run.locked():
        fsync(0)


def test_a_checkout_that_nobody_installed_has_no_version(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    assert runs.version() == metadata.version("opnorm")
    monkeypatch.setattr(metadata, "version", version)
    assert runs.version() == "unknown"
