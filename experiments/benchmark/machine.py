"""How fast the machine is, to be read beside times."""

import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.benchmark.setting import Setting
from experiments.common import cli, timing
from experiments.common.records import Record

_OTHERS = ("torch", "torchattacks", "foolbox", "matfree")


def product(dtype: str, setting: Setting) -> tuple[float, float]:
    """Returns seconds and FLOP of the product of two large matrices."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    multiply: Callable[..., jax.Array] = jax.jit(jnp.matmul)
    rounds = setting.take_turns({"product": lambda: multiply(a, a)})
    return timing.medians(rounds)["product"], 2.0 * n**3


def gflops(setting: Setting) -> float:
    """Returns the rate of a product of float32 matrices, in GFLOP/s."""
    seconds, flop = product("float32", setting)
    return flop / seconds / 1e9


def describe() -> Record:
    """Returns the processor, how many this process may use, and peers' releases."""
    peers = [name for name in _OTHERS if importlib.util.find_spec(name)]
    return {
        "processor": _processor(),
        "processors": processors(),
        "versions": cli.versions(*peers),
    }


def processors() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def line(results: Record) -> str:
    """Returns a sentence on the machine, the releases and the revision of results."""
    machine, environment = results["machine"], results["environment"]
    rates = machine["product_gflops"]
    speed = " to ".join(f"{rate:.0f}" for rate in sorted({min(rates), max(rates)}))
    versions = {"JAX": environment["jax"], **machine["versions"]}
    releases = ", ".join(f"{name} {version}" for name, version in versions.items())
    device = "" if environment["platform"] == "cpu" else f", {environment['device']}"
    return (
        f"{machine['processors']} cores of {machine['processor']}{device}; a product "
        f"of float32 matrices at {speed} GFLOP/s during the run; {releases}; revision "
        f"{(results['git_revision'] or 'unknown')[:7]}."
    )


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
