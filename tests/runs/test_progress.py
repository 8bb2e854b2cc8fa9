"""Progress off a terminal is plain lines, and reads metrics only when it shows them."""

import sys
from unittest import mock

from opnorm.runs.progress import Progress


class Metric:
    read = 0

    def __float__(self):
        Metric.read += 1
        return 0.5


def test_lines_have_metrics_rate_and_time_left(capsys):
    with Progress(4, description="snr", examples=8, interval=0.0) as bar:
        bar.update(1, loss=Metric())
    line = capsys.readouterr().err
    assert line.startswith("snr: step 1/4, loss 0.5, ")
    assert "examples/s" in line
    assert "left" in line


def test_the_rate_is_that_of_all_batches_since_the_start(monkeypatch, capsys):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("opnorm.runs.progress.time.monotonic", lambda: next(now))
    # Batches of 8, and of 2 from step 2 on.
    with Progress(9, examples=lambda n: 8 * min(n, 2) + 2 * max(0, n - 2)) as bar:
        bar.update(1)
        # Shown after 10 seconds: clocks 2, then 4, 6, ... and one more to show.
        for step in range(2, 7):
            bar.update(step)
    line = capsys.readouterr().err
    # Steps 2 to 5, the first of them with 8 examples, in 10 seconds.
    assert "step 5/9" in line
    assert " 1 examples/s" in line


def test_metrics_are_read_only_when_shown(capsys):
    Metric.read = 0
    with Progress(100, interval=1e6) as bar:
        for step in range(1, 101):
            bar.update(step, loss=Metric())
    assert Metric.read == 1
    assert "step 100/100" in capsys.readouterr().err


def test_a_closed_terminal_ends_nothing_but_the_lines(monkeypatch):
    closed = mock.Mock(isatty=lambda: False)
    closed.write.side_effect = OSError(5, "Input/output error")
    monkeypatch.setattr(sys, "stderr", closed)
    with Progress(3, interval=0.0) as bar:
        for step in (1, 2, 3):
            bar.update(step)
    assert closed.write.call_count == 1


def test_it_can_be_silent(capsys):
    with Progress(1, enabled=False) as bar:
        bar.update(1, loss=Metric())
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(2, description="snr", initial=1) as bar:
        bar.update(2, loss=0.25)
    shown = capsys.readouterr().err
    assert "snr" in shown
    assert "2/2" in shown
