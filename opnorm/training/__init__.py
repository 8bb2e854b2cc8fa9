"""Training of networks, its compiled step and loop, and the recipes of the papers.

Imports every other room. Orbax is imported when a checkpoint is written or read.
"""

from opnorm.training.config import (
    COMPUTE_DTYPES,
    DATA_FIELDS,
    EPSILON_UNITS,
    SPECTRAL_NORM_METHODS,
    Config,
)
from opnorm.training.load import Run, load_run
from opnorm.training.loop import TrainResult, train
from opnorm.training.methods import METHODS, Auxiliary, Batch, Method, methods_with
from opnorm.training.methods import attack as training_attack
from opnorm.training.metrics import OnMetrics, csv_metrics, tensorboard_metrics
from opnorm.training.modes import Modes
from opnorm.training.modes import create as make_modes
from opnorm.training.plan import Plan, check_devices, image_size
from opnorm.training.plan import make as make_plan
from opnorm.training.presets import (
    GRIDS,
    PRESETS,
    STEP_RATIO,
    Grid,
    Preset,
    describe_presets,
    get_grid,
    get_preset,
)
from opnorm.training.program import (
    Objective,
    Program,
    build_model,
    make_objective,
    make_program,
)
from opnorm.training.shardings import (
    data_mesh,
    place,
    replicated,
    sharded,
    state_shardings,
)
from opnorm.training.state import TrainState, init_state
from opnorm.training.step import make_step
from opnorm.training.train_set import load_train_set, load_validation_set
from opnorm.training.units import in_pixels
from opnorm.training.validation import validate

__all__ = [
    "COMPUTE_DTYPES",
    "DATA_FIELDS",
    "EPSILON_UNITS",
    "GRIDS",
    "METHODS",
    "PRESETS",
    "SPECTRAL_NORM_METHODS",
    "STEP_RATIO",
    "Auxiliary",
    "Batch",
    "Config",
    "Grid",
    "Method",
    "Modes",
    "Objective",
    "OnMetrics",
    "Plan",
    "Preset",
    "Program",
    "Run",
    "TrainResult",
    "TrainState",
    "build_model",
    "check_devices",
    "csv_metrics",
    "data_mesh",
    "describe_presets",
    "get_grid",
    "get_preset",
    "image_size",
    "in_pixels",
    "init_state",
    "load_run",
    "load_train_set",
    "load_validation_set",
    "make_modes",
    "make_objective",
    "make_plan",
    "make_program",
    "make_step",
    "methods_with",
    "place",
    "replicated",
    "sharded",
    "state_shardings",
    "tensorboard_metrics",
    "train",
    "training_attack",
    "validate",
]
