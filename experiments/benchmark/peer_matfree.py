"""The task of the part "peers" in matfree."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmark import spectrum
from experiments.benchmark.tasks import Task
from experiments.common import timing


def build(task: Task) -> Callable[[], Any]:
    """Returns Lanczos on an explicit matrix; it waits for its own result."""
    del task
    fun, args = spectrum.matfree_on_matrix()
    compiled = jax.jit(fun)
    return lambda: timing.wait(compiled(*args))
