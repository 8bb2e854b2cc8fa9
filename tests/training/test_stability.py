"""Updates that are not finite, and an end on request."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import numpy as np
import pytest

from opnorm import runs, training
from opnorm.runs import checkpoints, preemption

TINY = training.Config(
    model="mlp", width=8, epochs=2, batch_size=16, train_examples=48, seed=3
)


def one_device():
    return training.data_mesh(jax.devices()[:1])


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss of chosen steps infinite or its gradient NaN."""
    from opnorm.training import methods, program

    def poison(kind, bad_keys):
        create = methods.create

        def changed(config, network):
            method = create(config, network)

            def loss(params, stats, state, batch, key):
                value, auxiliary = method.loss(params, stats, state, batch, key)
                bad = jax.numpy.isin(batch.indices[0], jax.numpy.asarray(bad_keys))
                factor = {"loss": np.inf, "gradient": np.nan}[kind]
                total = sum(leaf.sum() for leaf in jax.tree.leaves(params))
                if kind == "gradient":
                    # Its value is finite, its gradient is not.
                    total = total - jax.lax.stop_gradient(total)
                    hidden = jax.numpy.sqrt(jax.numpy.where(bad, total, 1.0))
                    return value + hidden * 0, auxiliary
                return value + jax.numpy.where(bad, factor, 0.0), auxiliary

            return methods.Method(method.init, loss)

        monkeypatch.setattr(methods, "create", changed)
        forget()

    def forget():
        program._method.cache_clear()
        program._compiled_step.cache_clear()

    yield poison
    forget()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_updates_that_are_not_finite_are_left_out_and_counted(
    kind, poisoned, train_set, tmp_path, caplog
):
    plan = training.make_plan(TINY, 48)
    bad = [int(plan.indices(TINY.seed, step)[0]) for step in (1, 2)]
    poisoned(kind, bad)
    states = []
    for directory, epochs in ((tmp_path, 1), (None, 2)):
        result = training.train(
            dataclasses.replace(TINY, epochs=epochs, schedule="constant"),
            directory=directory,
            train_set=train_set,
            mesh=one_device(),
            log_every=1,
            checkpoint_every=1,
            show_progress=False,
        )
        states.append(result)
    logged = runs.read_metrics(tmp_path)
    assert [line["skipped_updates"] for line in logged] == [0, 1, 2]
    assert all(np.isfinite(leaf).all() for leaf in leaves(states[1].params))
    # Steps 1 and 2 changed nothing: the checkpoint of step 1 is that of step 3.
    store = tmp_path / "checkpoints"
    kept = sorted(int(p.name) for p in store.iterdir() if p.name.isdigit())
    found = {s: checkpoints._read(store / str(s))[1] for s in kept}
    first, last = (found[step]["params.dense1.kernel"] for step in (kept[0], kept[-1]))
    np.testing.assert_array_equal(first, last)
    assert "left out" in caplog.text


def test_too_many_in_a_row_end_the_run_and_keep_the_good_state(
    poisoned, train_set, tmp_path
):
    plan = training.make_plan(TINY, 48)
    poisoned("loss", [int(plan.indices(TINY.seed, step)[0]) for step in (2, 3, 4, 5)])
    options = {"train_set": train_set, "mesh": one_device(), "show_progress": False}
    with pytest.raises(FloatingPointError, match=r"last 3 updates.*step 5"):
        training.train(
            TINY,
            directory=tmp_path,
            log_every=1,
            checkpoint_every=1,
            max_skipped_updates=2,
            **options,
        )
    run = training.load_run(tmp_path)
    assert run.step == 4
    chex.assert_tree_all_finite(run.network)


class _Signalling(np.ndarray):
    """Images that send a signal to this process when the third batch is read."""

    reads = 0
    number = signal.SIGTERM

    def __getitem__(self, place):
        self.reads += 1
        if self.reads == 3:
            os.kill(os.getpid(), self.number)
            time.sleep(0.2)
        return np.asarray(super().__getitem__(place))


def test_sigterm_ends_with_a_checkpoint_and_the_run_goes_on(train_set, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    options = {"mesh": one_device(), "show_progress": False}
    images = train_set.images.view(_Signalling)
    signalling = dataclasses.replace(train_set, images=images)
    with pytest.raises(runs.Preempted) as stopped:
        training.train(TINY, directory=tmp_path, train_set=signalling, **options)
    assert stopped.value.code == 143
    assert stopped.value.step == 3
    assert training.load_run(tmp_path).step == 3
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = training.train(TINY, directory=tmp_path, train_set=train_set, **options)
    whole = training.train(TINY, train_set=train_set, **options)
    for a, b in zip(leaves(resumed.params), leaves(whole.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, runs.Preempted)],
)
def test_so_do_ctrl_c_and_a_closed_terminal(train_set, tmp_path, number, kind, capsys):
    before = signal.getsignal(number)
    images = train_set.images.view(_Signalling)
    images.number = number
    with pytest.raises(kind) as stopped:
        training.train(
            TINY,
            directory=tmp_path,
            train_set=dataclasses.replace(train_set, images=images),
            mesh=one_device(),
            show_progress=False,
        )
    assert training.load_run(tmp_path).step == 3
    assert signal.getsignal(number) == before
    if kind is KeyboardInterrupt:
        assert "Ctrl-C after step 3" in str(stopped.value)
        assert "again, at once" in capsys.readouterr().err
    else:
        assert stopped.value.code == 129


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption.on_signals() as request:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not request
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_cannot_finish_its_step_ends_after_the_grace_time():
    # A process that nothing else lives in; the module needs Python alone.
    program = f"""
import runpy, sys, time
on_signals = runpy.run_path({preemption.__file__!r})["on_signals"]
with on_signals(grace_seconds=float(sys.argv[1])):
    print("ready", flush=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.1)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen([*command, "0.5"], stdout=-1) as process:
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert 0.4 < time.monotonic() - start < 8
    # A second Ctrl-C does not wait for that.
    with subprocess.Popen([*command, "60"], stdout=-1, stderr=-1) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"again, at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_in_other_threads_nothing_is_caught():
    found = []

    def ask():
        with preemption.on_signals() as request:
            found.append(bool(request))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False]
