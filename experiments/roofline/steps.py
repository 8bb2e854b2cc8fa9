"""Train steps compiled for a chip, and the limits that follow from their kernels."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import train_steps
from experiments.common.records import Record
from experiments.roofline.program import Kernel


def compile_step(
    target: jax.Device,
    name: str,
    label: str,
    dtype: str,
    batch_size: int | None,
    fields: Mapping[str, Any],
) -> jax.stages.Compiled:
    """Compiles a train step of the benchmark at the size of its paper.

    Args:
      target: the device.
      name: the network.
      label: the step.
      dtype: dtype that the network computes in.
      batch_size: examples per step; None for the benchmark's.
      fields: further fields of the configuration.
    """
    size = train_steps.FULL[name]
    if batch_size is not None:
        size = size._replace(batch_size=batch_size)
    program = train_steps.make_program(name, size, dtype, target, **fields)
    image_shape = program.objective.image_shape
    labels, images = jax.eval_shape(
        lambda: (
            jnp.zeros(size.batch_size, jnp.int32),
            jnp.zeros((size.batch_size, *image_shape), jnp.uint8),
        )
    )
    state = jax.eval_shape(lambda: program.initial_state(0))
    step = train_steps.make_step(program, label)
    compiled: jax.stages.Compiled = step.lower(state, images, labels, labels).compile()
    return compiled


def summary(kernels: Sequence[Kernel], rate: float, bandwidth: float) -> Record:
    """Sums up the kernels of a step, altogether and by their kinds.

    Args:
      kernels: the kernels.
      rate: FLOP/s of the device.
      bandwidth: bytes per second of its memory.

    Returns:
      "flops", "bytes", "kernels", "seconds", the least time; "fraction", the share of
      the rate that is then reached; "kinds", the same numbers by kind, the slowest
      first.
    """
    kinds: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        kinds[kernel.kind].append(kernel)
    total = _total(kernels, rate, bandwidth)
    found = {kind: _total(each, rate, bandwidth) for kind, each in kinds.items()}
    return {
        **total,
        "fraction": total["flops"] / total["seconds"] / rate,
        "kinds": dict(sorted(found.items(), key=lambda item: -item[1]["seconds"])),
    }


def _total(
    kernels: Sequence[Kernel], rate: float, bandwidth: float
) -> dict[str, float]:
    return {
        "flops": sum(kernel.runs * kernel.flops for kernel in kernels),
        "bytes": sum(kernel.runs * kernel.bytes for kernel in kernels),
        "kernels": sum(kernel.runs for kernel in kernels),
        "seconds": sum(kernel.seconds(rate, bandwidth) for kernel in kernels),
    }


def memory(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes of a step: its inputs, its results and its buffers."""
    found: Any = compiled.memory_analysis()
    return int(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )
