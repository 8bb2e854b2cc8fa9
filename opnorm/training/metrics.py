"""Writers of training metrics, beside the metrics.jsonl of a run's directory."""

import csv
import io
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opnorm import extras
from opnorm.runs import files

# Called with the number of updates done and the metrics; see :func:`train`.
OnMetrics = Callable[[int, Mapping[str, float]], object]

_STEP = "step"


def csv_metrics(path: str | os.PathLike[str]) -> OnMetrics:
    """Returns an ``on_metrics`` for :func:`train` that writes a table::

        on_metrics = training.csv_metrics("runs/snr/metrics.csv")
        training.train(config, directory="runs/snr", on_metrics=on_metrics)

    The table has a row for each record and a column for each metric, "step" first. A
    metric that a record lacks is an empty cell; one that is new gets a column at the
    end. Where a run goes on, rows from its first step on are replaced, so that the
    table is that of one run. A table of which no row would stay, such as that of
    another run, is kept beside it under the first free name ``FILE.1``, ``FILE.2``...

    Args:
      path: the file, in a folder that is there or is made. It is made with the first
        record.

    Raises:
      ValueError: if the file is there and holds another table.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"path is {file}, a folder; give a file for the table.")
    columns, rows = _read_table(file)
    begun = False

    def write(step: int, values: Mapping[str, float]) -> None:
        nonlocal begun
        row = {_STEP: step, **values}
        new = [name for name in row if name not in columns]
        columns.extend(new)
        if begun and not new:
            text = _as_text(columns, [row])
            with (
                files.naming(file),
                open(
                    file, "a", encoding="utf-8", opener=files.open_without_link
                ) as stream,
            ):
                stream.write(text)
            rows.append(row)
            return
        kept = [each for each in rows if int(each[_STEP]) < step]
        if rows and not kept and not begun:
            _keep_aside(file)
            columns[:] = row
        rows[:] = [*kept, row]
        file.parent.mkdir(parents=True, exist_ok=True)
        header = dict(zip(columns, columns, strict=True))
        files.write_whole(file, _as_text(columns, [header, *rows]))
        begun = True

    return write


def _keep_aside(file: Path) -> None:
    """Gives a file the first free name of FILE.1, FILE.2, ..."""
    names = (file.with_name(f"{file.name}.{n}") for n in itertools.count(1))
    with files.naming(file):
        file.rename(next(name for name in names if not name.exists()))


def _read_table(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns columns and rows of the table of an earlier call; empty without one."""
    if not file.exists():
        return [], []
    lines = list(csv.reader(io.StringIO(file.read_text(errors="replace"))))
    columns = lines[0] if lines else []
    rows = [
        {name: cell for name, cell in zip(columns, line, strict=True) if cell}
        for line in lines[1:]
        # A kill may have cut the last line short.
        if len(line) == len(columns)
    ]
    if columns[:1] != [_STEP] or not all(
        row.get(_STEP, "").isdecimal() for row in rows
    ):
        raise ValueError(
            f"path is {file}, which is there and is no table of metrics; give another "
            "file."
        )
    return columns, rows


def _as_text(columns: list[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()


def tensorboard_metrics(directory: str | os.PathLike[str]) -> OnMetrics:
    """Returns an ``on_metrics`` for :func:`train` that writes for TensorBoard::

        on_metrics = training.tensorboard_metrics("runs/snr/tensorboard")
        training.train(config, directory="runs/snr", on_metrics=on_metrics)

    Each metric is a scalar of its name. ``tensorboard --logdir=runs`` shows them. Where
    a run goes on, a new event file says from which step on earlier ones are void.

    Args:
      directory: folder of the event files, made with the first record.

    Raises:
      MissingPackage: if tensorboardX of the extra ``tensorboard`` is missing.
      ValueError: if the directory is a file.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"directory is {folder}, a file; give a folder.")
    with extras.needed("opnorm.training.tensorboard_metrics", extra="tensorboard"):
        from tensorboardX import SummaryWriter
    writer: Any = None

    def write(step: int, values: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:
            writer = SummaryWriter(str(folder), purge_step=step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        # The process may end without notice.
        writer.flush()

    return write
