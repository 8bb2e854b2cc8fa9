"""The tasks of the part "peers" in opnorm."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmark import spectrum, tasks
from experiments.benchmark.setting import Setting, cnn7_program
from experiments.benchmark.steps import TrainStep
from experiments.benchmark.tasks import Task
from experiments.common import attack_specs, timing
from experiments.compare_attacks import measure
from experiments.compare_attacks.peers import ROWS
from opnorm import data, models, operators

_ATTACKED = {"epsilon": tasks.EPSILON, "num_steps": tasks.ATTACK_STEPS}
_TRAIN: dict[str, dict[str, Any]] = {
    tasks.STANDARD: {"method": "standard"},
    tasks.ADVERSARIAL: {"method": "adversarial", **_ATTACKED},
    tasks.AMORTIZED: {"method": "data_dependent_snr", **_ATTACKED},
}


def build(task: Task) -> Callable[[], Any]:
    """Returns the function of a task; it waits for its own result."""
    if task.name in _TRAIN:
        return _train_step(task)
    if task.name == tasks.MATRIX:
        fun, args = spectrum.lanczos_on_matrix()
        return _waiting(jax.jit(fun), *args)
    if task.name == tasks.JACOBIAN:
        return _dense_jacobian(task)
    return _attack(task)


def _setting(task: Task, batch_size: int) -> Setting:
    return Setting(
        compilations=timing.Compilations(),
        width=task.width,
        batch_size=batch_size,
        num_rounds=1,
        attack_steps=(),
        compute_dtype="float32",
        full_size=False,
        directory=Path(task.folder),
    )


def _waiting(run: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: timing.wait(run(*args))


def _network(task: Task, given: dict[str, Any]) -> models.Network:
    objective = cnn7_program(_setting(task, 1)).objective
    params, batch_stats = jax.device_put((given["params"], given["batch_stats"]))
    return objective.network(params, batch_stats, ())


def _train_step(task: Task) -> Callable[[], Any]:
    given = task.load()
    images, labels = given["images"], given["labels"]
    setting = _setting(task, len(images))
    program = cnn7_program(setting, augment=True, **_TRAIN[task.name])
    return _waiting(TrainStep(setting, task.name, program, "", images, labels))


def _dense_jacobian(task: Task) -> Callable[[], Any]:
    given = task.load()
    x = jax.device_put(np.float32(given["images"]) / 255)
    jacobian = functools.partial(operators.dense_jacobian, max_bytes=2**33)
    return _waiting(jax.jit(jacobian), _network(task, given), x)


def _attack(task: Task) -> Callable[[], Any]:
    given = task.load()
    images, labels = given["test_images"], given["test_labels"]
    classes = tuple(map(str, range(10)))
    setting = measure.Setting(
        network=_network(task, given),
        torch_network=None,
        test_set=data.Dataset(images, labels, classes, "given", "given"),
        batch_size=len(images),
        rounds=1,
        seed=0,
    )
    row = ROWS[tasks.ATTACKS[task.name]]
    spec = attack_specs.parse_attack(row.ours)
    every_step = task.name.startswith("PGA")
    run = measure.every_step_of if every_step else measure.until_misclassified
    return run(setting, spec, row.p, tasks.EPSILON)
