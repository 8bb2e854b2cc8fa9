"""One process at a time, until it ends in whatever way."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from opnorm import runs
from opnorm.runs import lock

HOLDER = f"""
import pathlib, runpy, sys, time
hold = runpy.run_path({lock.__file__!r})["hold"]
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_holder_is_named_and_its_death_releases_the_lock(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=-1) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(runs.RunInUse) as refused, lock.hold(tmp_path):
            pass
        for word in (str(tmp_path), f"process {holder.pid} on", socket.gethostname()):
            assert word in str(refused.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock.hold(tmp_path):
        pass


def test_one_process_holds_a_directory_once(tmp_path):
    with lock.hold(tmp_path, keep=False):
        in_use = pytest.raises(runs.RunInUse, match=f"process {os.getpid()} on")
        with in_use, lock.hold(tmp_path):
            pass
        assert (tmp_path / lock.FILE).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": []}', "[" * 4096, "\xff"])
def test_whatever_the_file_holds_the_error_is_one_line(tmp_path, text):
    with lock.hold(tmp_path):
        (tmp_path / lock.FILE).write_text(text)
        in_use = pytest.raises(runs.RunInUse, match="another process")
        with in_use, lock.hold(tmp_path):
            pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.hold(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("my own text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.FILE).symlink_to(mine)
    linked = pytest.raises(OSError, match=os.strerror(errno.ELOOP))
    with linked, lock.hold(tmp_path / "run"):
        pass
    assert mine.read_text() == "my own text"
