"""Settings of JAX and XLA under which the tests run, and programs kept or released.

``OPNORM_TEST_FLAGS`` chooses them:

====================  ==================================================================
not set               eight simulated devices, and programs that compile fast
``strict``            the same, and JAX refuses implicit promotion of dtypes and ranks
``float64``           the same, with 64-bit numbers as the default
``onednn``            one CPU device, where oneDNN may convolve, and fast compilation
``default``           JAX as a user has it, on any backend
====================  ==================================================================
"""

import os
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NUM_DEVICES = 8
MODES = ("", "strict", "float64", "onednn", "default")
MODE = os.environ.get("OPNORM_TEST_FLAGS", "")
# A process of Linux may map 65,530 pieces of memory by default.
_MOST_MAPS = 40_000


def configure() -> None:
    """Sets the environment that JAX reads, then imports and configures JAX.

    Raises:
      ValueError: for an unknown mode.
    """
    if MODE not in MODES:
        known = ", ".join(MODES[1:])
        raise ValueError(f"OPNORM_TEST_FLAGS is {MODE!r}; it may be {known}.")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # Decompositions of small blocks run one after another; their threads would wait for
    # each other on the core of the other test process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if MODE != "default":
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("XLA_FLAGS", " ".join(_xla_flags()))
    if MODE == "strict":
        os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
        os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    if MODE == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"

    if MODE not in ("onednn", "default"):
        # Programs with calls to oneDNN cannot be stored, so they compile in every run.
        os.environ.setdefault("OPNORM_ONEDNN", "off")

    import jax

    if MODE not in ("onednn", "default"):
        jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    share_contexts(num_programs=100)


def _xla_flags() -> list[str]:
    # Most of the suite's time is compilation of programs that run once.
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # A program cut into parts for threads takes longer where every core has a
        # process.
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if metadata.version("jaxlib").startswith("0.10."):
        # The older way to compile fusions takes a third less time. Later releases have
        # dropped the flag, and end a process that sets it.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return flags


def share_contexts(num_programs: int) -> None:
    """Lets so many programs in a row be lowered in one MLIR context.

    JAX makes one context for each program, and loads all dialects into it: a quarter of
    the time that lowering takes here. Attributes, such as constants, live as long as
    their context. Every program has its own where a release has no such function.
    """
    try:
        from jax._src.interpreters import mlir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return
    context, left = None, 0

    def shared():
        nonlocal context, left
        if left == 0:
            context, left = make(), num_programs
        left -= 1
        return context

    mlir.make_ir_context = shared


def release_programs() -> None:
    """Releases compiled programs where the process maps too many pieces of memory.

    With all of the suite's programs alive, XLA's compiler ended in a segmentation fault
    at the limit of Linux.
    """
    import gc

    import jax

    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
