"""Several processes that share a run, over loopback."""

import signal
import socket
import time

import chex
import numpy as np
import pytest

from opnorm import runs, training

FLAGS = [
    "--model=mlp",
    "--width=32",
    "--train_examples=160",
    "--batch_size=32",
    # Adam would turn rounding of gradients near zero into whole steps.
    "--optimizer=sgd",
    "--learning_rate=0.05",
    "--log_every=1",
    "--checkpoint_every=3",
]
# The death of a process is noticed after this time, not after half a minute.
SOON = {"opnorm.runs.hosts": {"_HEARTBEAT_SECONDS": 10}}


@pytest.fixture
def begin(start):
    """``(directory, *options) ->`` two processes, with four devices between them."""

    def begin(directory, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = [
                f"--run={directory}",
                f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}",
                "--num_processes=2",
            ]
        return [
            start(
                "train",
                *FLAGS,
                *options,
                *shared,
                f"--process_id={number}",
                devices=2,
                constants=SOON,
            )
            for number in range(2)
        ]

    return begin


def finish(running):
    outputs = [process.communicate() for process in running]
    return [process.returncode for process in running], outputs


def losses(directory):
    lines = runs.read_metrics(directory)
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def steps_saved(directory):
    found = (directory / "checkpoints").glob("*")
    return [int(path.name) for path in found if path.name.isdigit()]


def test_two_processes_train_as_one(begin, tmp_path):
    options = ["--method=data_dependent_snr", "--parameter_sharding=fsdp"]
    options += ["--validation_fraction=0.02", "--validation_examples=50", "--keep_best"]
    codes, outputs = finish(begin(tmp_path / "two", "--epochs=2", *options))
    assert codes == [0, 0], outputs
    # One writer: every step is logged once, one table is printed.
    steps, found = losses(tmp_path / "two")
    assert steps == list(range(1, 11))
    assert "| run" in outputs[0][0]
    assert "| run" not in outputs[1][0]
    # The same run in this process alone.
    config = training.load_run(tmp_path / "two").config
    training.train(
        config,
        directory=tmp_path / "one",
        log_every=1,
        validation_examples=50,
        keep_best=True,
        show_progress=False,
    )
    np.testing.assert_allclose(found, losses(tmp_path / "one")[1], rtol=1e-5)
    here, there = (training.load_run(tmp_path / run).network for run in ("two", "one"))
    chex.assert_trees_all_close(here, there, atol=2e-5)
    # Rounding moves an example in fifty at most; each process counts all of them.
    validated = [
        [
            line["validation_pga_accuracy"]
            for line in runs.read_metrics(tmp_path / run)[4::5]
        ]
        for run in ("two", "one")
    ]
    np.testing.assert_allclose(*validated, atol=0.021)
    assert training.load_run(tmp_path / "two", "best").step in (5, 10)


def test_the_death_of_one_is_told_and_the_run_goes_on(begin, tmp_path):
    options = ["--epochs=120", "--method=standard", "--noaugment"]
    running = begin(tmp_path, *options)
    deadline = time.monotonic() + 120
    while not steps_saved(tmp_path) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in running), finish(running)
        time.sleep(0.02)
    running[1].send_signal(signal.SIGKILL)
    codes, outputs = finish(running)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)
    told = outputs[0][1]
    if codes[0] == 1:
        assert "one of them is gone" in told
        assert "Start all of them again" in told
    else:
        # Gloo waited for it, until JAX missed its heartbeat.
        assert codes[0] == -signal.SIGABRT
        assert "another task died" in told, told
    saved = max(steps_saved(tmp_path))
    assert saved < 600
    # They go on to an end on request, which one of the two is asked for.
    running = begin(tmp_path, *options)
    while max(steps_saved(tmp_path)) == saved and time.monotonic() < deadline:
        time.sleep(0.02)
    # Ctrl-C there is passed on as SIGTERM, which JAX tells the others.
    running[1].send_signal(signal.SIGINT)
    codes, outputs = finish(running)
    assert codes == [143, 130], outputs
    last = max(steps_saved(tmp_path))
    assert saved < last < 600
    steps, _ = losses(tmp_path)
    assert steps == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), "give all three"),
        (("127.0.0.1:1", 2, 2), "process_id is 2 of 2"),
        (("127.0.0.1", 2, 1), "coordinator_address is '127.0.0.1'.*host:port"),
        ((None, None, None), "not that of a cluster"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        runs.initialize_hosts(*arguments)
