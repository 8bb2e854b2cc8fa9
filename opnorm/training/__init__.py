"""training: objectives, the compiled step, checkpoints and the loop.

Imports every other room. Orbax is imported when a checkpoint is written or read.
"""

from opnorm.training.build import Run, build_model, load_run, load_train_set
from opnorm.training.config import COMPUTE_DTYPES, METHODS, Config
from opnorm.training.loop import TrainResult, train
from opnorm.training.methods import Auxiliary, Batch, Method
from opnorm.training.modes import Modes
from opnorm.training.modes import create as make_modes
from opnorm.training.plan import Plan, check_devices, image_size
from opnorm.training.plan import make as make_plan
from opnorm.training.step import (
    TrainState,
    data_mesh,
    init_state,
    make_step,
    place,
    replicated,
    sharded,
    state_shardings,
)
from opnorm.training.validation import validate

__all__ = [
    "COMPUTE_DTYPES",
    "METHODS",
    "Auxiliary",
    "Batch",
    "Config",
    "Method",
    "Modes",
    "Plan",
    "Run",
    "TrainResult",
    "TrainState",
    "build_model",
    "check_devices",
    "data_mesh",
    "image_size",
    "init_state",
    "load_run",
    "load_train_set",
    "make_modes",
    "make_plan",
    "make_step",
    "place",
    "replicated",
    "sharded",
    "state_shardings",
    "train",
    "validate",
]
