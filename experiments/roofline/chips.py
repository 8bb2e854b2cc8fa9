"""Chips as XLA describes them, so that it compiles for chips that are not there."""

from typing import NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """The data sheet of a GPU.

    Attributes:
      name: the name that the driver gives.
      capability: major compute capability.
      cores: number of streaming multiprocessors.
      shared_kib: shared memory of a multiprocessor, in KiB.
      cache_mib: size of the level 2 cache, in MiB.
      memory_gib: memory of the device, in GiB.
      bandwidth: of its memory, in bytes per second.
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


def device(chip: Chip) -> jax.Device:
    """Returns a device to compile for, which need not be there.

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
            f"({' '.join(str(error).split())[:200]}); install it with "
            "pip install 'opnorm[cuda13]' (no GPU is needed)."
        ) from error
    found: jax.Device = topology.devices[0]
    return found
