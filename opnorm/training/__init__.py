"""training: objectives, the compiled step, checkpoints and the loop.

Imports every other room. Orbax is imported when a checkpoint is written or read.
"""

from opnorm.training.config import METHODS, Config, validate
from opnorm.training.loop import TrainResult, build_model, load_run, train
from opnorm.training.methods import Auxiliary, Batch, Method
from opnorm.training.network import Network, bind
from opnorm.training.progress import Progress
from opnorm.training.run_directory import (
    RunDirectory,
    environment,
    git_revision,
    read_metrics,
)
from opnorm.training.step import (
    TrainState,
    data_mesh,
    init_state,
    make_step,
    replicated,
    sharded,
)

__all__ = [
    "METHODS",
    "Auxiliary",
    "Batch",
    "Config",
    "Method",
    "Network",
    "Progress",
    "RunDirectory",
    "TrainResult",
    "TrainState",
    "bind",
    "build_model",
    "data_mesh",
    "environment",
    "git_revision",
    "init_state",
    "load_run",
    "make_step",
    "read_metrics",
    "replicated",
    "sharded",
    "train",
    "validate",
]
