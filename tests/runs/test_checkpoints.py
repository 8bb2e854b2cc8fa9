"""Checkpoints come back exactly, or the one before does; never anything else."""

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import time
from typing import NamedTuple
from unittest import mock

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opnorm import runs
from opnorm.runs import checkpoints


class State(NamedTuple):
    """Counters, parameters of two dtypes, nothing at all, an optimiser, a key."""

    step: jax.Array
    params: dict
    batch_stats: dict
    optimizer_state: optax.OptState
    method_state: dict
    key: jax.Array


def state(seed):
    key = jax.random.key(seed)
    params = {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 2, 16))},
        "dense": {"kernel": jax.random.normal(key, (200, 10), jnp.bfloat16)},
    }
    return State(
        step=jnp.int32(seed),
        params=params,
        batch_stats={},
        optimizer_state=optax.adam(1e-3).init(params),
        method_state={"left": jax.random.normal(key, (5, 10))},
        key=key,
    )


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(directory, *steps):
    with contextlib.closing(checkpoints.CheckpointStore(directory)) as store:
        for number in steps:
            store.save(number, state(number), {"config": {"seed": number}})


def test_a_state_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 1, 2, 3)
    found = checkpoints.CheckpointStore(tmp_path).restore(state(0))
    assert found.step == 3
    assert found.metadata == {"config": {"seed": 3}, "step": 3}
    assert_same(found.state, state(3))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_a_digest_is_that_of_names_and_content():
    first, again, other = state(1), state(1), state(2)
    assert checkpoints.digest(first) == checkpoints.digest(again)
    same_names = (other.params, {"kernel": np.zeros(2)}, {"kernel": np.zeros((2, 1))})
    digests = {checkpoints.digest(each) for each in (first.params, *same_names)}
    assert len(digests) == 4


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert checkpoints.CheckpointStore(tmp_path / "none").restore(state(0)) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.restore_parts(tmp_path, ["params"])


def test_shardings_are_those_of_the_example(tmp_path):
    save(tmp_path, 1)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    example = jax.device_put(state(0), whole)
    found = checkpoints.CheckpointStore(tmp_path).restore(example)
    assert_same(found.state, state(1))
    for leaf in jax.tree.leaves(found.state):
        assert leaf.sharding.device_set == set(mesh.devices.flat)


def damages(file):
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = bytearray(content)
    if flipped:
        flipped[middle] ^= 0x10
    yield "flipped", lambda: file.write_bytes(bytes(flipped))
    yield "cut", lambda: file.write_bytes(content[:middle])
    yield "gone", file.unlink


def test_any_damage_gives_the_exact_newest_or_the_exact_one_before(tmp_path):
    outcomes = set()
    save(tmp_path / "whole", 1, 2)
    files = sorted(f for f in (tmp_path / "whole" / "2").rglob("*") if f.is_file())
    assert files
    for number, file in enumerate(files):
        kinds = [kind for kind, _ in damages(file)]
        for kind in kinds:
            copy = tmp_path / f"{number}-{kind}"
            subprocess.run(["cp", "-r", tmp_path / "whole", copy], check=True)
            relative = file.relative_to(tmp_path / "whole")
            dict(damages(copy / relative))[kind]()
            found = checkpoints.CheckpointStore(copy).restore(state(0))
            assert_same(found.state, state(found.step))
            outcomes.add(found.step)
    assert outcomes == {1, 2} or outcomes == {1}


def test_a_damaged_step_is_kept_aside_and_can_be_saved_again(tmp_path):
    directory = tmp_path / "checkpoints"
    save(directory, 1, 2)
    largest = max(
        (f for f in (directory / "2").rglob("*") if f.is_file()),
        key=lambda f: f.stat().st_size,
    )
    largest.write_bytes(b"")
    store = checkpoints.CheckpointStore(directory)
    assert store.restore(state(0)).step == 1
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    store.save(2, state(2), {})
    store.close()
    assert checkpoints.CheckpointStore(directory).restore(state(0)).step == 2


def test_all_damaged_is_an_error_and_deletes_nothing(tmp_path):
    save(tmp_path, 1)
    meta = next(f for f in (tmp_path / "1" / "meta").rglob("*") if f.is_file())
    for file in (tmp_path / "1" / "meta").rglob("*"):
        if file.is_file():
            file.write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.CheckpointStore(tmp_path).restore(state(0))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.restore_parts(tmp_path, ["params"])
    assert meta.exists()


def test_a_state_of_another_shape_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    other = state(0)
    other.params["conv"]["kernel"] = jnp.zeros((3, 3, 2, 17))
    with pytest.raises(ValueError, match=r"params.conv.kernel.*16.*17"):
        checkpoints.CheckpointStore(tmp_path).restore(other)


def test_steps_must_rise(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(ValueError, match="step is 2"):
        save(tmp_path, 2)


def test_what_a_kill_left_unfinished_is_removed(tmp_path):
    save(tmp_path, 1)
    left = [f"12.orbax-checkpoint-tmp{ending}" for ending in ("", "-1700000000")]
    others = ["notes", "best.orbax-checkpoint-tmp"]
    for name in left + others:
        (tmp_path / name / "state").mkdir(parents=True)
    save(tmp_path, 2)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"1", "2", *others}


def test_two_stores_do_not_save_at_the_same_time(tmp_path):
    store = checkpoints.CheckpointStore(tmp_path)
    store.save(1, {"a": np.zeros(3)}, {})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(runs.RunInUse):
        save(tmp_path, 3)
    # It is at work on that one.
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
    store.close()
    save(tmp_path, 3)


def test_a_full_disk_is_an_oserror_and_keeps_the_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for failure, reason in (
        (OSError(errno.EDQUOT, "over quota", "elsewhere"), "Disk quota exceeded"),
        (ValueError('RESOURCE_EXHAUSTED: Error opening "zarr"'), "No space left"),
        (ValueError("PERMISSION_DENIED: Failed writing"), "Permission denied"),
        (RuntimeError("the reason\nin lines"), "the reason"),
    ):
        fail = mock.Mock(side_effect=failure)
        message = rf"step 2 cannot be written \({reason}"
        with monkeypatch.context() as patched:
            patched.setattr("orbax.checkpoint.CheckpointManager.save", fail)
            with pytest.raises(OSError, match=message) as raised:
                save(tmp_path, 2)
        assert raised.value.filename == str(tmp_path)
        assert "\n" not in str(raised.value)
    usage = shutil.disk_usage(tmp_path)._replace(free=70_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, 2)
    assert checkpoints.CheckpointStore(tmp_path).restore(state(0)).step == 1


def test_pages_of_orbax_about_a_failed_save_are_left_out(tmp_path, monkeypatch):
    logger, seen = absl.logging.get_absl_logger(), []
    handler = logging.Handler()
    handler.emit = seen.append
    fields = {"levelno": logging.ERROR, "pathname": "/packages/orbax/future.py"}

    def fail(*args, **kwargs):
        logger.handle(logging.makeLogRecord(fields))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    monkeypatch.setattr(logger, "handlers", [handler])
    with pytest.raises(OSError, match="step 2 cannot be written"):
        save(tmp_path, 2)
    assert not seen
    # Only while a checkpoint is saved.
    logger.handle(logging.makeLogRecord(fields))
    assert len(seen) == 1


def test_variables_are_read_without_knowing_the_optimiser(tmp_path):
    save(tmp_path / checkpoints.FOLDER, 1)
    parts, metadata = checkpoints.restore_parts(tmp_path, ("params", "batch_stats"))
    assert_same(jax.tree.map(jnp.asarray, parts["params"]), state(1).params)
    assert parts["batch_stats"] == {}
    assert metadata["step"] == 1


# Writers are forked from one process, as importing takes longer than they live.
WRITERS = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
from test_checkpoints import state
from opnorm.runs import checkpoints
for line in sys.stdin:
    ended = json.loads(line)
    child = os.waitpid(ended, 0)[0] if ended else os.fork()
    if child == 0:
        signal.alarm(60)
        store = checkpoints.CheckpointStore({directory!r})
        found = store.restore(state(0))
        first = 1 if found is None else found.step + 1
        for number in range(first, first + 10_000):
            store.save(number, state(number), {{}})
    print(child, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, serve):
    directory = tmp_path / "checkpoints"
    tests = os.path.dirname(__file__)
    ask = serve(WRITERS.format(tests=tests, directory=str(directory)))
    reached = 0
    for delay in (0.03, 0.11):
        writer = ask(None)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(
                int(p.name) > reached
                for p in directory.glob("[0-9]*")
                if p.name.isdigit()
            ):
                break
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(writer, signal.SIGKILL)
        assert ask(writer) == writer
        found = checkpoints.CheckpointStore(directory).restore(state(0))
        assert found.step > reached
        assert_same(found.state, state(found.step))
        reached = found.step
