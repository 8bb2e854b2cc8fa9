"""The networks and train steps that the benchmark and the roofline share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from opnorm import attacks, regularizers, training
from opnorm.linalg import Params, PyTree

ATTACK_STEPS = 10


class Size(NamedTuple):
    """The size of a network and of its batches.

    Attributes:
      width: as in :func:`opnorm.models.create`.
      batch_size: examples in a step.
      image_size: height and width of the images.
      num_classes: number of logits.
    """

    width: int
    batch_size: int
    image_size: int
    num_classes: int


# As in the papers, for accelerators.
FULL = {
    "cnn7": Size(128, 512, 32, 10),
    "wrn28": Size(10, 256, 32, 10),
    "resnext34": Size(32, 256, 32, 10),
    "resnet50": Size(64, 256, 224, 1000),
}
# With these sizes the same rows take seconds on two cores. With fewer images the times
# of ResNet-50 are overhead, and their ratios vary by a factor of 1.7 between runs.
REDUCED = {
    "cnn7": Size(16, 64, 32, 10),
    "wrn28": Size(1, 32, 32, 10),
    "resnext34": Size(8, 32, 32, 10),
    "resnet50": Size(16, 32, 64, 1000),
}
ADVERSARIAL = ("cnn7", "wrn28")
REGULARIZED = ("resnext34", "resnet50")
STANDARD = "standard step"
DOUBLE = "double backpropagation"


def check_names(names: Sequence[str]) -> None:
    """Raises a ValueError unless there is a network of each name."""
    for name in names:
        if name not in FULL:
            raise ValueError(f"networks has {name!r}; it may have {', '.join(FULL)}.")


def steps_of(name: str, dtype: str) -> dict[str, dict[str, Any]]:
    """Returns the steps of a network in a dtype: fields of ``Config`` by label."""
    steps: dict[str, dict[str, Any]] = {STANDARD: {"method": "standard"}}
    if name in ADVERSARIAL:
        steps["adversarial-only step"] = {"method": "adversarial_only"}
    # A finite difference in half precision would be rounding.
    if name in REGULARIZED and dtype == "float32":
        half = "gradient regularisation"
        steps[half] = {"method": "gradient_regularization"}
        steps[f"{half}, whole batch"] = {**steps[half], "penalty_fraction": 1.0}
        steps[DOUBLE] = {"method": "standard"}
    return steps


def make_program(
    name: str, size: Size, dtype: str, device: jax.Device, **fields: Any
) -> training.Program:
    """Makes the program of a training set of one batch; nothing is computed.

    Args:
      name: of the network.
      size: of the network and its batches.
      dtype: what the network computes in.
      device: the device that the steps are for.
      **fields: other fields of the configuration.
    """
    config = training.Config(
        model=name,
        width=size.width,
        compute_dtype=dtype,
        batch_size=size.batch_size,
        **{"augment": False, "num_steps": ATTACK_STEPS, **fields},
    )
    image_shape = (size.image_size, size.image_size, 3)
    return training.Program(
        training.make_objective(config, size.num_classes, image_shape),
        training.make_plan(config, size.batch_size),
        training.data_mesh([device]),
    )


def make_step(
    program: training.Program, label: str, wrap: Callable[..., Any] | None = None
) -> Any:
    """Returns the step of a program, as ``jax.jit`` returns it.

    Args:
      program: the result of :func:`make_program`.
      label: of the step; ``DOUBLE`` replaces the loss of the program's method.
      wrap: changes the loss, or None.
    """
    method = program.objective.method
    if label == DOUBLE:
        loss = _double_backpropagation(program.objective.modes)
        method = method._replace(loss=loss)
    if wrap is not None:
        method = method._replace(loss=wrap(method.loss))
    return training.make_step(
        method, program.optimizer, program.mesh, augmentation=program.augmentation
    )


def _double_backpropagation(net: training.Modes) -> Callable[..., Any]:
    """The loss of gradient regularisation without a finite difference."""

    def loss(
        params: Params,
        batch_stats: PyTree,
        state: PyTree,
        batch: training.Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, training.Auxiliary]:
        def losses(x: jax.Array) -> jax.Array:
            logits = net.infer(params, batch_stats, x)
            return attacks.cross_entropy(logits, batch.labels)

        logits, updated = net.train(params, batch_stats, batch.images, key)
        clean = attacks.cross_entropy(logits, batch.labels).mean()
        penalty = regularizers.gradient_penalty(
            losses, batch.images, method="double_backpropagation"
        )
        return clean + penalty.value.mean(), training.Auxiliary(updated, state, {})

    return loss
