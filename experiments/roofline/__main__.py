r"""Computes what a GPU's memory and arithmetic allow train steps; no GPU is needed.

  pip install 'opnorm[cuda13]'                  # the compiler
  opnorm roofline --networks=cnn7,wrn28 --compute_dtype=bfloat16
  opnorm roofline --chip=h100 --rate=700 --bandwidth=3

Compiles the steps that ``experiments.benchmark --parts=networks`` times, at the papers'
sizes, for a chip that need not be there. The optimised program says what each kernel
computes and moves. A kernel takes at least the larger of its FLOP over the chip's rate
and its bytes over the memory's bandwidth (the roofline of Williams, Waterman &
Patterson 2009). The sum over all kernels says which share of the rate a step can reach
at most with the kernels that XLA chose, and which kernels to look at. Neither caches
between kernels nor the time to start them count.

Nothing is measured: rates are those of the chip's data sheet, unless --rate and
--bandwidth give measured ones. Writes roofline.json and table.md into --run after every
step.
"""

import os
from typing import Any

import jax
from absl import flags

from experiments.common import cli, records, train_steps
from experiments.roofline import program
from experiments.roofline.chips import CHIPS, device
from experiments.roofline.steps import compile_step, memory, summary
from experiments.roofline.tables import text
from opnorm import runs

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
    "dtype that the networks compute in; float32 products are TF32 on these chips",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "examples per step; the benchmark's by default", lower_bound=1
)
_RATE = flags.DEFINE_float(
    "rate", None, "TFLOP/s of matrix products, instead of the data sheet's"
)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", None, "TB/s of the chip's memory, instead of the data sheet's"
)
_LARGEST = flags.DEFINE_integer(
    "largest", 8, "kinds of kernels to list for each step", lower_bound=0
)
_CHIP = flags.DEFINE_enum("chip", "h200", list(CHIPS), "chip to compile for")


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
    configure: Any = jax.config.update
    configure("jax_platforms", "cpu")
    os.environ["OPNORM_LOOPS"] = "plain"
    target = device(chip)
    run = cli.hold(runs.RunDirectory(_RUN.value))
    found: dict[str, records.Record] = {}
    table = ""
    for name in _NETWORKS.value:
        for label, fields in train_steps.steps_of(name, dtype).items():
            title = f"{name}, {label}, {dtype}"
            print(f"compiling: {title}", flush=True)
            compiled = compile_step(
                target, name, label, dtype, _BATCH_SIZE.value, fields
            )
            kernels = program.read(compiled.as_text() or "")
            limits = summary(kernels, rate, bandwidth)
            found[title] = limits | {"memory_bytes": memory(compiled)}
            results = {
                **records.origin(),
                "chip": chip._asdict(),
                "rate": rate,
                "bandwidth": bandwidth,
                "batch_size": _BATCH_SIZE.value,
                "steps": found,
            }
            table = text(results, _LARGEST.value)
            run.write_json("roofline.json", results)
            run.write_text("table.md", f"{table}\n")
    print(table)


if __name__ == "__main__":
    cli.run(main)
