r"""What an accelerator's memory and arithmetic allow train steps, without having one.

  pip install -e '.[cuda13]'                  # the compiler; no GPU is needed
  python -m experiments.roofline --networks=cnn7,wrn28 --compute_dtype=bfloat16
  python -m experiments.roofline --chip=h100 --rate=700 --bandwidth=3

Compiles the steps that ``experiments.benchmark --parts=networks`` times, at the papers'
sizes, for a chip that need not be there, and reads from the optimised program what each
kernel computes and moves. A kernel takes at least the larger of its FLOP over the
chip's rate and its bytes over the memory's bandwidth (the roofline of Williams,
Waterman & Patterson 2009); the sum over all kernels says what part of the rate a step
can reach at most with the kernels that XLA chose, and which of them to look at. What a
cache saves between kernels does not count, and neither does starting them.

Nothing is measured: rates are the chip's data sheet's, unless --rate and --bandwidth
give measured ones. Writes roofline.json and table.md into --run after every step.
"""

import collections
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies

from experiments.common import cli, train_steps
from experiments.roofline import program
from opnorm import runs, training

_RUN = flags.DEFINE_string("run", "runs/roofline", "directory to write to")
_NETWORKS = flags.DEFINE_list(
    "networks",
    ["cnn7", "wrn28", "resnet50"],
    f"out of {', '.join(train_steps.FULL)}",
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "bfloat16",
    ["float32", "bfloat16"],
    "what the networks compute in; products of float32 are TF32's on these chips",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "examples per step; the benchmark's by default", lower_bound=1
)
_RATE = flags.DEFINE_float(
    "rate", None, "TFLOP/s of matrix products, in place of the data sheet's"
)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", None, "TB/s of the chip's memory, in place of the data sheet's"
)
_LARGEST = flags.DEFINE_integer(
    "largest", 8, "kinds of kernels to list for each step", lower_bound=0
)


class Chip(NamedTuple):
    """A GPU's data sheet.

    Attributes:
      name: as the driver gives it.
      capability: major compute capability.
      cores: streaming multiprocessors.
      shared_kib: shared memory of one, in KiB.
      cache_mib: of level 2.
      memory_gib: of the device.
      bandwidth: of its memory, bytes per second.
      rates: dense FLOP/s of matrix products by dtype.
    """

    name: str
    capability: int
    cores: int
    shared_kib: int
    cache_mib: int
    memory_gib: int
    bandwidth: float
    rates: dict[str, float]


_HOPPER = {"bfloat16": 989e12, "float32": 494e12}
CHIPS = {
    "a100": Chip(
        "NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        shared_kib=164,
        cache_mib=40,
        memory_gib=80,
        bandwidth=2.04e12,
        rates={"bfloat16": 312e12, "float32": 156e12},
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3",
        capability=9,
        cores=132,
        shared_kib=228,
        cache_mib=50,
        memory_gib=80,
        bandwidth=3.35e12,
        rates=_HOPPER,
    ),
    "h200": Chip(
        "NVIDIA H200",
        capability=9,
        cores=132,
        shared_kib=228,
        cache_mib=60,
        memory_gib=140,
        bandwidth=4.8e12,
        rates=_HOPPER,
    ),
}
_CHIP = flags.DEFINE_enum("chip", "h200", list(CHIPS), "what to compile for")


def main() -> None:
    """Compiles the steps asked for and reports them."""
    train_steps.check_names(_NETWORKS.value)
    for flag in (_RATE, _BANDWIDTH):
        if flag.value is not None and not 0 < flag.value < float("inf"):
            raise ValueError(f"{flag.name} is {flag.value}; it must be positive.")
    chip, dtype = CHIPS[_CHIP.value], _COMPUTE_DTYPE.value
    rate = _RATE.value * 1e12 if _RATE.value else chip.rates[dtype]
    bandwidth = _BANDWIDTH.value * 1e12 if _BANDWIDTH.value else chip.bandwidth
    # Nothing runs on an accelerator, and its programs need no rewriting.
    jax.config.update("jax_platforms", "cpu")
    os.environ["OPNORM_LOOPS"] = "plain"
    target = device(chip)
    cli.hold(runs.RunDirectory(_RUN.value))
    found: dict[str, dict[str, Any]] = {}
    text = ""
    for name in _NETWORKS.value:
        for label, options in train_steps.steps_of(name, dtype).items():
            title = f"{name}, {label}, {dtype}"
            print(f"compiling: {title}", flush=True)
            compiled = compile_step(target, name, dtype, _BATCH_SIZE.value, options)
            kernels = program.read(compiled.as_text() or "")
            found[title] = _summary(kernels, rate, bandwidth) | {
                "memory_bytes": _memory(compiled)
            }
            text = _write(chip, rate, bandwidth, found)
    print(text)


def device(chip: Chip) -> Any:
    """A device to compile for, which need not be there.

    Raises:
      ValueError: if JAX's compiler for NVIDIA's GPUs is not installed.
    """
    description = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: {48 << 10}
          shared_memory_per_core: {chip.shared_kib << 10}
          shared_memory_per_block_optin: {chip.shared_kib - 1 << 10}
          threads_per_core_limit: 2048
          core_count: {chip.cores}
          fpus_per_core: {64 if chip.capability == 8 else 128}
          block_dim_limit_x: {(1 << 31) - 1}
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {int(chip.bandwidth)}
          l2_cache_size: {chip.cache_mib << 20}
          clock_rate_ghz: {1.41 if chip.capability == 8 else 1.98}
          device_memory_size: {chip.memory_gib << 30}
          cuda_compute_capability {{ major: {chip.capability} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 }}
        device_description_str: "{chip.name}"
    """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description, topology="1x1x1"
        )
    except RuntimeError as error:
        raise ValueError(
            "JAX's compiler for NVIDIA's GPUs cannot be loaded "
            f"({' '.join(str(error).split())[:200]}); install it with pip install -e "
            "'.[cuda13]' (no GPU is needed)."
        ) from error
    return topology.devices[0]


def compile_step(
    target: Any,
    name: str,
    dtype: str,
    batch_size: int | None,
    options: dict[str, Any],
) -> jax.stages.Compiled:
    """Compiles a train step of the benchmark at its paper's size.

    Args:
      target: the device.
      name: of the network.
      dtype: what the network computes in.
      batch_size: examples per step; None for the benchmark's.
      options: of :func:`experiments.train_steps.parts`.
    """
    size = train_steps.FULL[name]
    if batch_size is not None:
        size = size._replace(batch_size=batch_size)
    parts = train_steps.parts(name, size, dtype, **options)

    def start(key: jax.Array) -> training.TrainState:
        params, batch_stats = parts.objective.init(key)
        return training.init_state(
            params,
            batch_stats,
            parts.method,
            parts.optimizer,
            key,
            num_examples=size.batch_size,
            num_classes=size.num_classes,
        )

    mesh = training.data_mesh([target])
    step: Any = training.make_step(parts.method, parts.optimizer, mesh)
    labels = jax.ShapeDtypeStruct((size.batch_size,), jnp.int32)
    images = jax.ShapeDtypeStruct((size.batch_size, *parts.image_shape), jnp.uint8)
    state = jax.eval_shape(start, jax.random.key(0))
    return step.lower(state, images, labels, labels).compile()


def _summary(
    kernels: Sequence[program.Kernel], rate: float, bandwidth: float
) -> dict[str, Any]:
    flops = sum(kernel.runs * kernel.flops for kernel in kernels)
    seconds = sum(kernel.seconds(rate, bandwidth) for kernel in kernels)
    kinds: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"kernels": 0, "flops": 0.0, "bytes": 0.0, "seconds": 0.0}
    )
    for kernel in kernels:
        kind = kinds[kernel.kind]
        kind["kernels"] += kernel.runs
        kind["flops"] += kernel.runs * kernel.flops
        kind["bytes"] += kernel.runs * kernel.bytes
        kind["seconds"] += kernel.seconds(rate, bandwidth)
    return {
        "flops": flops,
        "bytes": sum(kernel.runs * kernel.bytes for kernel in kernels),
        "kernels": sum(kernel.runs for kernel in kernels),
        "seconds": seconds,
        "fraction": flops / seconds / rate,
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["seconds"])),
    }


def _memory(compiled: jax.stages.Compiled) -> int:
    """Bytes of a step: what it is given, its results and what it needs between."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _write(
    chip: Chip, rate: float, bandwidth: float, found: dict[str, dict[str, Any]]
) -> str:
    """Writes what was found so far; returns it as tables."""
    table = cli.table(
        [
            {
                "step": title,
                "TFLOP": f"{one['flops'] / 1e12:.2f}",
                "GB moved": f"{one['bytes'] / 1e9:.1f}",
                "kernels": one["kernels"],
                "memory, GB": f"{one['memory_bytes'] / 1e9:.1f}",
                "roofline ms": f"{1e3 * one['seconds']:.2f}",
                "of the rate": f"{100 * one['fraction']:.0f} %",
            }
            for title, one in found.items()
        ]
    )
    heading = (
        f"{chip.name}, {rate / 1e12:g} TFLOP/s, {bandwidth / 1e12:g} TB/s: computed "
        "from the compiled programs, not measured."
    )
    text = "\n\n".join([heading, table, *_kinds(found)])
    run = runs.RunDirectory(_RUN.value)
    run.write_json(
        "roofline.json",
        {
            "environment": runs.environment(),
            "git_revision": runs.git_revision(),
            "chip": chip._asdict(),
            "rate": rate,
            "bandwidth": bandwidth,
            "batch_size": _BATCH_SIZE.value,
            "steps": found,
        },
    )
    run.write_text("table.md", f"{text}\n")
    return text


def _kinds(found: dict[str, dict[str, Any]]) -> list[str]:
    tables = []
    for title, one in found.items():
        rows = [
            {
                title: kind,
                "kernels": each["kernels"],
                "TFLOP": f"{each['flops'] / 1e12:.2f}",
                "GB moved": f"{each['bytes'] / 1e9:.1f}",
                "roofline ms": f"{1e3 * each['seconds']:.2f}",
            }
            for kind, each in list(one["kinds"].items())[: _LARGEST.value]
        ]
        tables += [cli.table(rows)] if rows else []
    return tables


if __name__ == "__main__":
    cli.run(main)
