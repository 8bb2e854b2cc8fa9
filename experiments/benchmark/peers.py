"""The cost of training, attacks and Lanczos beside other libraries.

Each library runs in a process of its own, on all processors, and the processes take
turns: threads of PyTorch spin after their work, and XLA would wait for them. A library
that has several forms counts with its fastest: PyTorch has two layouts of images in
memory, and an attack is in several libraries.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark import machine, tasks
from experiments.benchmark.children import Child, ChildError, take_turns
from experiments.benchmark.setting import (
    Found,
    Setting,
    cnn7_program,
    read_batch,
    trained,
)
from experiments.benchmark.tasks import Task
from experiments.common import timing
from opnorm import data

_OPNORM = "opnorm"
_MODULES = {
    _OPNORM: "experiments.benchmark.peer_opnorm",
    "pytorch": "experiments.benchmark.peer_torch",
    "torchattacks": "experiments.benchmark.peer_torch",
    "foolbox": "experiments.benchmark.peer_torch",
    "matfree": "experiments.benchmark.peer_matfree",
}
_NEEDED = {
    "pytorch": ("torch",),
    "torchattacks": ("torch", "torchattacks"),
    "foolbox": ("torch", "foolbox"),
    "matfree": ("matfree",),
}
_LAYOUTS = {"": False, ", channels-last": True}


class Row(NamedTuple):
    """A task of opnorm beside that of others.

    Attributes:
      task: of opnorm.
      others: libraries that have it.
      beside: their task; None for the same.
      faster: whether the ratio is that of speeds, and not that of times.
      trained: whether the network is a trained one. The attack then leaves out the
        examples that are misclassified, in the libraries whose attacks do so.
      examples: number of examples to attack.
    """

    task: str
    others: tuple[str, ...] = ("pytorch",)
    beside: str | None = None
    faster: bool = False
    trained: bool = False
    examples: int = 128

    @property
    def ratio(self) -> str:
        """The name of the ratio in results."""
        beside = self.beside or self.task
        kind = "speed of " if self.faster else ""
        other = "matfree's" if self.others == ("matfree",) else "the fastest other"
        if self.others == ("pytorch",):
            other = "PyTorch's"
        return f"{kind}{self.task} / {other} {beside}"


ROWS = {
    "standard": Row(tasks.STANDARD),
    "adversarial": Row(tasks.ADVERSARIAL),
    "amortized": Row(tasks.AMORTIZED, beside=tasks.STANDARD),
    "pga": Row("PGA-10", faster=True),
    "pga100": Row("PGA-100", faster=True),
    "apgd": Row("APGD-100", ("torchattacks",), faster=True, trained=True),
    "deepfool": Row("DeepFool", ("torchattacks", "foolbox"), faster=True, trained=True),
    "auto_attack": Row(
        "AutoAttack", ("torchattacks",), faster=True, trained=True, examples=32
    ),
    "jacobian": Row(tasks.JACOBIAN),
    "lanczos": Row(tasks.MATRIX, ("matfree",)),
}


def first_call(task: str) -> str:
    """Returns the name of the seconds of opnorm's first call, in results."""
    return f"first call of {task}, s"


def measure(setting: Setting, name: str) -> Found:
    """Times a row, and measures its memory.

    A library that is not installed, or that cannot do the task, is left out with a line
    that says so.

    Args:
      setting: how to measure.
      name: of the row, out of ``ROWS``.
    """
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        _write_given(setting, row, Path(folder))
        with _children(setting, row, folder) as children:
            if _OPNORM not in children:
                return Found({}, {})
            rounds = take_turns(children, setting.num_rounds)
            costs = {
                library: {
                    "seconds": statistics.median(rounds[library]),
                    "first_seconds": child.first_seconds,
                    "bytes_before": child.bytes_before,
                    "peak_bytes": child.peak_bytes,
                }
                for library, child in children.items()
            }
    others = [library for library in costs if library != _OPNORM]
    ratios = {first_call(row.task): costs[_OPNORM]["first_seconds"]}
    record: dict[str, Any] = {"task": row.task, "costs": costs}
    if others:
        best = min(others, key=lambda library: costs[library]["seconds"])
        pair = (best, _OPNORM) if row.faster else (_OPNORM, best)
        ratios[row.ratio] = timing.ratio(rounds, *pair)
        record |= {"beside": row.beside or row.task, "best": best, "ratio": row.ratio}
    return Found({}, ratios, {"peers": {name: record}})


def _write_given(setting: Setting, row: Row, folder: Path) -> None:
    """Writes a training batch, examples to attack and the weights of a CNN7."""
    if row.trained:
        network = trained(setting)
        params, batch_stats = network.params, network.batch_stats
    else:
        objective = cnn7_program(setting).objective
        params, batch_stats = objective.init(jax.random.key(0))
    images, labels = read_batch(setting.batch_size)
    attacked = data.load("cifar10_mini", split="test", limit=row.examples)
    given = {
        "images": images,
        "labels": np.asarray(labels, np.int32),
        "test_images": attacked.images,
        "test_labels": attacked.labels,
        "params": params,
        "batch_stats": batch_stats,
    }
    tasks.write(folder, jax.device_get(given))


@contextmanager
def _children(setting: Setting, row: Row, folder: str) -> Iterator[dict[str, Child]]:
    """The processes of a row by their library and layout; they are ended at the end."""
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for library in (_OPNORM, *row.others):
            missing = _missing(library)
            if missing:
                print(f"left out, {missing} is not installed: {library}, {row.task}")
                continue
            torch = library not in (_OPNORM, "matfree")
            for suffix, channels_last in _LAYOUTS.items() if torch else [("", False)]:
                title = row.task if library == _OPNORM else row.beside or row.task
                task = Task(
                    name=title,
                    library=library,
                    channels_last=channels_last,
                    threads=machine.processors(),
                    width=setting.width,
                    folder=folder,
                )
                try:
                    child = Child(_MODULES[library], task)
                except ChildError as error:
                    print(f"left out, {error}: {library}{suffix}, {title}", flush=True)
                    continue
                stack.callback(child.close)
                children[f"{library}{suffix}"] = child
        yield children


def _missing(library: str) -> str | None:
    """The package that a library needs and that is not installed."""
    needed = _NEEDED.get(library, ())
    return next((name for name in needed if not importlib.util.find_spec(name)), None)
