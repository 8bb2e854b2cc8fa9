"""Metrics reach a hook as they reach metrics.jsonl, and writers keep one table."""

import csv
import struct
import sys

import pytest

from opnorm import runs, training

TINY = training.Config(
    model="mlp",
    width=8,
    epochs=2,
    batch_size=16,
    train_examples=48,
    seed=3,
    augment=False,
)


def read_csv(path):
    with path.open(newline="") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def read_events(folder):
    """``(step, name) -> value`` of all event files, as TensorBoard shows them."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    # The name holds the second and the process; the start of a resumed file drops the
    # later steps of those before.
    for file in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                found = {key: v for key, v in found.items() if key[0] < event.step}
            for value in event.summary.value:
                key = event.step, value.tag
                assert key not in found
                found[key] = value.simple_value
    return found


def test_a_resumed_run_gives_one_table(train_set, tmp_path, interrupt):
    has_tensorboard = True
    try:
        training.tensorboard_metrics(tmp_path / "events")
    except ImportError:
        has_tensorboard = False
    table, given = tmp_path / "folder" / "metrics.csv", []

    def train(dataset):
        writers = [training.csv_metrics(table), lambda *record: given.append(record)]
        if has_tensorboard:
            writers.append(training.tensorboard_metrics(tmp_path / "events"))
        return training.train(
            TINY,
            directory=tmp_path / "run",
            train_set=dataset,
            log_every=1,
            checkpoint_every=3,
            show_progress=False,
            on_metrics=lambda *record: [write(*record) for write in writers],
        )

    # Step 4 is recorded and lost with the state after step 3.
    with pytest.raises(KeyboardInterrupt):
        train(interrupt(train_set, after=4))
    first = [step for step, _ in given]
    train(train_set)
    steps = [step for step, _ in given]
    assert first == list(range(1, first[-1] + 1))
    assert steps[len(first) :] == list(range(steps[len(first)], 7))
    lines = runs.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert read_csv(table) == lines
    assert {step: dict(values) for step, values in given} == {
        line["step"]: {name: v for name, v in line.items() if name != "step"}
        for line in lines
    }
    assert all(type(v) in (float, int) for _, row in given for v in row.values())
    # A run that is complete has no records.
    count = len(given)
    train(train_set)
    assert len(given) == count
    assert read_csv(table) == lines
    if has_tensorboard:
        for (step, name), value in read_events(tmp_path / "events").items():
            assert value == pytest.approx(lines[step - 1][name], rel=1e-6)


def test_an_exception_of_the_hook_ends_the_training(train_set):
    def fail(step, values):
        raise OSError(f"full at step {step}, epoch {values['epoch']:.3g}")

    with pytest.raises(OSError, match=r"full at step 2, epoch 0\.667"):
        training.train(
            TINY, train_set=train_set, log_every=2, show_progress=False, on_metrics=fail
        )


def test_a_table_gains_columns_and_replaces_later_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    write = training.csv_metrics(path)
    write(1, {"loss": 0.1})
    write(2, {"loss": 1 / 3, "validation": 0.5})
    write(3, {"loss": float("nan")})
    assert path.read_text().splitlines()[0] == "step,loss,validation"
    # A kill cuts the last line short.
    path.write_text(path.read_text()[:-3])
    write = training.csv_metrics(path)
    write(2, {"loss": 4.0})
    write(3, {"loss": 5.0, "validation": 0.25})
    assert read_csv(path) == [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 4.0},
        {"step": 3, "loss": 5.0, "validation": 0.25},
    ]


def test_the_table_of_another_run_is_kept(tmp_path):
    path = tmp_path / "metrics.csv"
    for number, name in enumerate(("loss", "penalty", "accuracy")):
        write = training.csv_metrics(path)
        write(1, {name: number / 4})
        write(2, {name: number / 2})
    assert read_csv(path) == [{"step": s, "accuracy": s / 2} for s in (1, 2)]
    assert read_csv(tmp_path / "metrics.csv.2") == [
        {"step": s, "penalty": s / 4} for s in (1, 2)
    ]
    assert read_csv(tmp_path / "metrics.csv.1") == [
        {"step": s, "loss": 0.0} for s in (1, 2)
    ]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step,loss\nx,2\n"])
def test_a_file_that_is_no_table_is_left_alone(tmp_path, text):
    path = tmp_path / "notes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="no table of metrics"):
        training.csv_metrics(path)
    assert path.read_text() == text


def test_wrong_places_and_a_missing_library_are_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="a folder; give a file"):
        training.csv_metrics(tmp_path)
    with pytest.raises(ValueError, match="a file; give a folder"):
        training.tensorboard_metrics(file)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'opnorm\[tensorboard\]'"):
        training.tensorboard_metrics(tmp_path / "events")
