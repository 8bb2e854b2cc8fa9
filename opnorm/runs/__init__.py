"""Directories of results, checkpoints, processes that share a run, and its progress.

Nothing here depends on the computation of a run: programs that train nothing use it,
too. It imports no other room. Orbax is imported when a checkpoint is written or read.
"""

from opnorm.runs.checkpoints import CheckpointStore, restore_parts
from opnorm.runs.directory import RunDirectory, read_metrics
from opnorm.runs.environment import command, environment, git_revision, version
from opnorm.runs.files import write_arrays, write_whole
from opnorm.runs.hosts import ProcessLost, is_writer
from opnorm.runs.hosts import initialize as initialize_hosts
from opnorm.runs.json_values import Json, JsonObject, as_json
from opnorm.runs.json_values import read as read_json
from opnorm.runs.lock import RunInUse
from opnorm.runs.memory import keep_freed_memory
from opnorm.runs.preemption import Preempted
from opnorm.runs.progress import Progress

__all__ = [
    "CheckpointStore",
    "Json",
    "JsonObject",
    "Preempted",
    "ProcessLost",
    "Progress",
    "RunDirectory",
    "RunInUse",
    "as_json",
    "command",
    "environment",
    "git_revision",
    "initialize_hosts",
    "is_writer",
    "keep_freed_memory",
    "read_json",
    "read_metrics",
    "restore_parts",
    "version",
    "write_arrays",
    "write_whole",
]
