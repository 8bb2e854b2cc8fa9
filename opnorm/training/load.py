"""The network of a run, read from its checkpoints, and runs that start from one."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from opnorm import models, runs
from opnorm.linalg import Params
from opnorm.runs import JsonObject, checkpoints
from opnorm.training import validation, weight_bounds
from opnorm.training.config import Config, from_plain
from opnorm.training.program import Program, make_objective
from opnorm.training.state import TrainState

# The checkpoints of a run that can be read.
CHECKPOINTS = ("last", "best")


class Run(NamedTuple):
    """A trained network, as a run directory holds it.

    Attributes:
      config: the configuration of its training, without ``data_dir``. A run may come
        from somebody else, and TensorFlow Datasets reads only folders that the user
        names.
      network: ``network(x)`` in inference mode. Its kernels are bounded where the
        configuration bounds their layers' norms.
      step: number of updates done.
      metadata: further facts in the checkpoint: configuration, number of classes and
        shape of images.
    """

    config: Config
    network: models.Network
    step: int
    metadata: JsonObject


def load_run(directory: str | os.PathLike[str], checkpoint: str = "last") -> Run:
    """Reads the network of a run's newest valid checkpoint, or of its best one::

        run = training.load_run("runs/snr")
        run.network(x)  # (B, K) logits

    Args:
      directory: a run directory, or its folder of checkpoints.
      checkpoint: "last", or "best" for the one that training with ``keep_best`` kept
        in the folder "best" of the run. ``metadata["best"]`` of such a run says by
        which accuracy it is the best. The folder may be given as the directory too.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: for another name of a checkpoint; if all of them are damaged, the
        configuration is not one that this version knows, or the parameters have no
        layer "logits". Flax notices other parameters that are not those of the
        configuration when the network is called.
    """
    if checkpoint not in CHECKPOINTS:
        raise ValueError(
            f"checkpoint is {checkpoint!r}; it may be {', '.join(CHECKPOINTS)}."
        )
    if checkpoint == "best":
        directory = Path(directory) / checkpoints.BEST
        if not directory.is_dir():
            raise FileNotFoundError(
                f"there is no {directory}; a run that is trained with keep_best keeps "
                "its best checkpoint there."
            )
    parts, metadata = runs.restore_parts(
        directory, ("params", "batch_stats", "method_state")
    )
    config = from_plain(metadata.get("config"), str(directory))
    try:
        validation.validate(config)
    except ValueError as error:
        raise ValueError(
            f"{directory} has a configuration that cannot be used: {error}"
        ) from error
    config = dataclasses.replace(config, data_dir=None)
    if weight_bounds.divides(config):
        num_classes, image_shape = _shape_of_data(metadata, directory)
    else:
        num_classes, image_shape = _num_classes(parts["params"], directory), ()
    try:
        objective = make_objective(config, num_classes, image_shape)
        network = objective.network(**parts)
    # Flax raises all kinds of errors for parameters of another network.
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{directory} holds parameters that are not those of its "
            f"configuration ({str(error).strip().splitlines()[:1]})."
        ) from error
    _num_classes(network.params, directory)
    return Run(config, network, metadata["step"], metadata)


def initial_state(program: Program, config: Config) -> TrainState:
    """Builds the state before the first update, not yet on its devices.

    Args:
      program: the program of the run.
      config: the configuration of the run; its variables are those of ``init_from``, or
        random ones.

    Raises:
      ValueError or FileNotFoundError: if those cannot be read or do not fit.
    """
    start = None
    if config.init_from is not None:
        start = load_run(config.init_from).network
    return program.initial_state(config.seed, start, str(config.init_from))


def _num_classes(params: Params, directory: str | os.PathLike[str]) -> int:
    """The number of logits: checkpoints of earlier versions do not tell it."""
    try:
        return int(params["logits"]["kernel"].shape[-1])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{directory} holds parameters without the layer 'logits'; they are "
            f"{', '.join(sorted(params))[:200] or 'none'}."
        ) from error


def _shape_of_data(
    metadata: JsonObject, directory: str | os.PathLike[str]
) -> tuple[int, tuple[int, ...]]:
    """The number of classes and ``(H, W, C)`` that a checkpoint was trained with."""
    num_classes, shape = metadata.get("num_classes"), metadata.get("image_shape")
    numbers = [num_classes, *shape] if isinstance(shape, list) else []
    if len(numbers) != 4 or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(
            f"{directory} has a checkpoint without the number of classes and the shape "
            f"of images: num_classes is {str(num_classes)[:80]}, image_shape is "
            f"{str(shape)[:80]}."
        )
    return numbers[0], tuple(numbers[1:])
