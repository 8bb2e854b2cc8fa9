"""A run's directory says how to repeat it, and holds nothing half-written."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import training


def test_flags_versions_and_hardware_are_written_once(tmp_path):
    run = training.RunDirectory.create(tmp_path / "run", {"lr": 0.1, "seeds": (0, 1)})
    stored = json.loads((tmp_path / "run" / "flags.json").read_text())
    assert stored["flags"] == {"lr": 0.1, "seeds": [0, 1]} == run.flags()
    assert stored["environment"]["jax"] and stored["environment"]["device"]
    assert "git_revision" in stored and stored["command"]
    again = training.RunDirectory.create(tmp_path / "run", {"lr": 0.1, "seeds": [0, 1]})
    assert again.flags() == run.flags()


def test_other_flags_are_refused_by_name(tmp_path):
    training.RunDirectory.create(tmp_path, {"lr": 0.1, "p": float("inf")})
    training.RunDirectory.create(tmp_path, {"lr": 0.1, "p": float("inf")})
    with pytest.raises(ValueError, match="lr is 0.1 there and 0.2 here"):
        training.RunDirectory.create(tmp_path, {"lr": 0.2, "p": float("inf")})


def test_metrics_survive_a_cut_line_and_lose_what_is_repeated(tmp_path):
    run = training.RunDirectory.create(tmp_path, {})
    for step in (1, 2, 3):
        run.log(step, loss=jnp.float32(step), bad=float("nan"))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    run.log(3, loss=7.0)
    lines = training.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] == 7.0 and lines[0]["bad"] == "nan"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_file_is_replaced(tmp_path, exists):
    """The directory itself may be a link."""
    target, folder, link = (tmp_path / name for name in ("mine.txt", "run", "link"))
    folder.mkdir()
    link.symlink_to(folder)
    run = training.RunDirectory.create(link, {"lr": 0.1})
    if exists:
        target.write_text("the user's own text")
    written = ("metrics.jsonl", "out.json", "out.md", "figure.png")
    for name in (*written, f".out.json.{os.getpid()}.opnorm"):
        (folder / name).symlink_to(target)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run.log(1, loss=1.0)
    # What a run begins with.
    run.truncate_metrics(0)
    run.log(1, loss=1.0)
    run.write_json("out.json", [1])
    run.write_text("out.md", "text")
    training.write_whole(run.figure_path("figure"), b"\x89PNG")
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
    run = training.RunDirectory.create(tmp_path / "run", {"lr": 0.1})
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "7").symlink_to(tmp_path)
    words = "checkpoints/7 is a symbolic link to a folder"
    with pytest.raises(ValueError, match=words):
        training.RunDirectory.for_results(run.path)
    with pytest.raises(ValueError, match=words):
        training.RunDirectory.create(run.path, {"lr": 0.1})


def test_json_is_valid_whatever_it_holds(tmp_path):
    run = training.RunDirectory(tmp_path)
    value = {"a": np.float32(1.5), "b": [np.inf, jnp.arange(2)], "c": None}
    run.write_json("out.json", value)
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == {"a": 1.5, "b": ["inf", [0, 1]], "c": None}
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]
    assert run.figure_path("curve") == tmp_path / "curve.png"
