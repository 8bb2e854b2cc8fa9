"""Binaries run as a user runs them, and runs that are there without training."""

import dataclasses
import subprocess

import jax
import pytest

from opnorm import training
from opnorm.runs import checkpoints


@pytest.fixture(scope="session")
def run(start):
    """``(name, *arguments) -> CompletedProcess`` of a binary, on one device."""

    def run(name, *arguments):
        process = start(name, *arguments)
        out, err = process.communicate()
        code = process.returncode
        return subprocess.CompletedProcess([name, *arguments], code, out, err)

    return run


@pytest.fixture(scope="session")
def save_untrained():
    """``(folder, config, seed)``: writes a run whose network is as it begins."""

    def save(folder, config, seed):
        objective = training.make_objective(config, 10, (32, 32, 3))
        params, batch_stats = objective.init(jax.random.key(seed))
        store = checkpoints.CheckpointStore(folder / "checkpoints")
        state = {"params": params, "batch_stats": batch_stats}
        store.save(0, state, {"config": dataclasses.asdict(config)})
        store.close()

    return save
