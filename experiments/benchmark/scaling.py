"""How costs grow with batches, widths, classes, budgets and examples."""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark.setting import (
    Found,
    Setting,
    cnn7_program,
    read_batch,
    trained,
)
from experiments.benchmark.steps import TrainStep
from experiments.common import train_steps
from experiments.common.measure import Pga
from opnorm import analysis, attacks, data, models, operators

_EPSILON = 0.5
_STEPS = 10
# Images of an attack whose cost is measured against other sizes.
_EXAMPLES = 128
# Images of a dense Jacobian: a thousand classes are as many passes back.
_FEW = 8

# Returns the function to time at a size.
_Build = Callable[[Setting, int], Callable[[], Any]]


class Axis(NamedTuple):
    """A quantity that costs grow with.

    Attributes:
      title: its name on the axis of a figure.
      sizes: its values, in rising order.
      builds: what is timed, by name.
    """

    title: str
    sizes: tuple[int, ...]
    builds: dict[str, _Build]


def _standard_step(setting: Setting, size: int, *, axis: str) -> Callable[[], Any]:
    given = {"width": setting.width, "batch": setting.batch_size, "classes": 10}
    given |= {axis: size}
    batch_size, classes = given["batch"], given["classes"]
    program = train_steps.make_program(
        "cnn7",
        train_steps.Size(given["width"], batch_size, 32, classes),
        "float32",
        jax.devices()[0],
        method="standard",
        augment=True,
    )
    title = f"standard step, {axis} {size}"
    return TrainStep(setting, title, program, "", *read_batch(batch_size))


def _pga(setting: Setting, size: int, *, axis: str) -> Callable[[], Any]:
    if axis == "width":
        setting = setting._replace(width=size)
    images, labels = read_batch(size if axis == "batch" else setting.batch_size)
    x, y = jax.device_put((np.float32(images) / 255, labels))
    attack = attacks.pga(p=2.0, epsilon=_EPSILON, num_steps=_STEPS)

    def run(f: models.Network, x: jax.Array, y: jax.Array) -> Any:
        return attack(f, x, y, jax.random.key(1))

    network = _untrained(setting, 10)
    return setting.compiled(f"PGA-{_STEPS}, {axis} {size}", run, network, x, y)


def _dense_norm(setting: Setting, size: int) -> Callable[[], Any]:
    network = _untrained(setting, size)
    x = jax.device_put(np.float32(read_batch(_FEW)[0]) / 255)

    def norm(f: models.Network, x: jax.Array) -> Any:
        return operators.jacobian_norm(f, x, method="dense").value

    return setting.compiled(f"exact dense sigma, {size} classes", norm, network, x)


def _untrained(setting: Setting, num_classes: int) -> models.Network:
    objective = cnn7_program(setting).objective._replace(num_classes=num_classes)
    return objective.network(*objective.init(jax.random.key(0)), ())


def _by_budgets(setting: Setting, size: int) -> Callable[[], Any]:
    epsilons = [2 * _EPSILON * (i + 1) / size for i in range(size)]
    return functools.partial(_evaluate, trained(setting), _EXAMPLES, epsilons)


def _by_examples(setting: Setting, size: int) -> Callable[[], Any]:
    return functools.partial(_evaluate, trained(setting), size, [_EPSILON])


def _evaluate(network: models.Network, count: int, epsilons: list[float]) -> Any:
    """Robust accuracy under PGA; examples repeat where the data have fewer."""
    found = data.load("cifar10_mini", split="test")
    rows = np.arange(count) % len(found)
    return analysis.robust_accuracy(
        network,
        found.images[rows],
        found.labels[rows],
        attack=Pga(2.0, _STEPS, 0).attack,
        epsilons=epsilons,
        key=jax.random.key(0),
    )


def _both(axis: str) -> dict[str, _Build]:
    return {
        "standard step": functools.partial(_standard_step, axis=axis),
        f"PGA-{_STEPS}": functools.partial(_pga, axis=axis),
    }


AXES = {
    "batch": Axis("examples of a batch", (1, 2, 8, 32, 128, 512), _both("batch")),
    "width": Axis("width of CNN7", (8, 16, 32, 64), _both("width")),
    "classes": Axis(
        "classes",
        (10, 30, 100, 300, 1000),
        {
            "standard step": functools.partial(_standard_step, axis="classes"),
            f"exact dense sigma of {_FEW} images": _dense_norm,
        },
    ),
    "budgets": Axis(
        "budgets",
        (1, 2, 5, 10, 20),
        {f"robust accuracy, PGA-{_STEPS}, {_EXAMPLES} images": _by_budgets},
    ),
    "examples": Axis(
        "examples",
        (100, 300, 1000, 3000, 10_000),
        {f"robust accuracy, PGA-{_STEPS}": _by_examples},
    ),
}


def measure(setting: Setting, name: str) -> Found:
    """Times functions at each size of an axis, without compilation.

    Args:
      setting: how to measure.
      name: of the axis, out of ``AXES``.
    """
    axis = AXES[name]
    seconds: dict[str, list[float]] = {}
    for title, build in axis.builds.items():
        functions = {str(size): build(setting, size) for size in axis.sizes}
        rounds = setting.take_turns(functions)
        seconds[title] = [statistics.median(times) for times in rounds.values()]
    record = {"title": axis.title, "sizes": list(axis.sizes), "seconds": seconds}
    return Found({}, {}, {"scaling": {name: record}})
