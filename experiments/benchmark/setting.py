"""The setting, the result and the small network that all parts have in common."""

import functools
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import timing, train_steps
from opnorm import data, models, training

# Enough for an accuracy far above chance.
_EPOCHS = 2


class Setting(NamedTuple):
    """How everything is measured.

    Attributes:
      compilations: counts the functions that are compiled.
      width: of CNN7.
      batch_size: examples in a step of CNN7.
      num_rounds: interleaved rounds.
      attack_steps: numbers of steps of PGA.
      compute_dtype: "float32" or "bfloat16": the networks of the parts "networks" and
        "input" compute in it.
      full_size: whether those networks are as large as in the papers.
      directory: where the parts "peers" and "scaling" keep the network that they train.
    """

    compilations: timing.Compilations
    width: int
    batch_size: int
    num_rounds: int
    attack_steps: tuple[int, ...]
    compute_dtype: str
    full_size: bool
    directory: Path

    def compiled(
        self, name: str, fun: Callable[..., Any], *args: Any
    ) -> Callable[[], Any]:
        """Returns the compiled function with its arguments; compilations count."""
        return functools.partial(jax.jit(self.compilations.wrap(name, fun)), *args)

    def take_turns(
        self, functions: Mapping[str, Callable[[], Any]]
    ) -> dict[str, list[float]]:
        """Returns the seconds of each function in each round."""
        return timing.take_turns(functions, self.num_rounds)

    def size_of(self, name: str) -> train_steps.Size:
        """Returns the size of a network of the parts "networks" and "input"."""
        return (train_steps.FULL if self.full_size else train_steps.REDUCED)[name]


class Found(NamedTuple):
    """The result of a part.

    Attributes:
      seconds: median seconds of each function.
      ratios: ratios of times, and other numbers.
      more: records of the parts that have a table of their own, by the name of the
        part and of the record.
    """

    seconds: dict[str, float]
    ratios: dict[str, float]
    more: Mapping[str, dict[str, Any]] = types.MappingProxyType({})

    def joined(self, other: "Found") -> "Found":
        """Returns both results as one."""
        more = {
            part: self.more.get(part, {}) | other.more.get(part, {})
            for part in (*self.more, *other.more)
        }
        return Found(self.seconds | other.seconds, self.ratios | other.ratios, more)


class Subject(NamedTuple):
    """An untrained CNN7 and a batch.

    Attributes:
      network: in inference mode.
      x: ``(B, 32, 32, 3)`` float, pixels in [0, 1].
      y: ``(B,)`` int.
    """

    network: models.Network
    x: jax.Array
    y: jax.Array


def read_batch(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8, and labels; they repeat where the data have fewer."""
    found = data.load("cifar10_mini", split="train", limit=batch_size)
    rows = np.arange(batch_size) % len(found)
    return found.images[rows], found.labels[rows]


def cnn7_program(setting: Setting, **fields: Any) -> training.Program:
    """Returns the program of CNN7 with further fields of ``Config``."""
    size = train_steps.Size(setting.width, setting.batch_size, 32, 10)
    device = jax.devices()[0]
    return train_steps.make_program("cnn7", size, "float32", device, **fields)


def subject(setting: Setting) -> Subject:
    """Makes the network that the parts "attack", "power" and "spectrum" measure."""
    objective = cnn7_program(setting).objective
    params, batch_stats = objective.init(jax.random.key(0))
    images, labels = read_batch(setting.batch_size)
    x, y = jax.device_put((np.float32(images) / 255, labels))
    return Subject(objective.network(params, batch_stats, ()), x, y)


def trained(setting: Setting) -> models.Network:
    """Trains a CNN7, whose accuracy some examples keep under attack.

    An attack on an untrained network would be over at once: most examples are
    misclassified without it.
    """
    config = training.Config(
        method="data_dependent_snr",
        width=setting.width,
        batch_size=64,
        epochs=_EPOCHS,
        weight=1.0,
    )
    directory = setting.directory / f"trained_{setting.width}"
    found = training.train(config, directory=directory, show_progress=False)
    return found.network
