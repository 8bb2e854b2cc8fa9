"""The cost of train steps of large networks.

A rate is the arithmetic of a step over its median time. It is compared with the rate
that the device reaches on a product of two large matrices in the same dtype.

In forward passes of one batch, a standard step is 3, and a step with the gradient
penalty on a fraction f of the batch is 3 + 5 f: 2 f to find directions, and 3 (1 + f)
for the loss. The default, a half, is therefore 1.83 standard steps, and the whole batch
of the paper 2.67.
"""

from collections.abc import Mapping

import jax

from experiments.benchmark import machine
from experiments.benchmark.setting import Found, Setting
from experiments.benchmark.steps import TrainStep
from experiments.common import timing, train_steps
from experiments.common.train_steps import DOUBLE, REGULARIZED, STANDARD


def measure(setting: Setting, name: str) -> Found:
    """Times the train steps of a network.

    A step that does not fit into the device's memory is left out, with a line that says
    so. Among the ratios are rates, in TFLOP/s.

    Args:
      setting: how to measure; finite differences are in float32 whatever the dtype.
      name: the network, out of ``train_steps.FULL``.
    """
    found = Found({}, {})
    dtypes = [setting.compute_dtype, *(["float32"] if name in REGULARIZED else [])]
    for dtype in dict.fromkeys(dtypes):
        found = found.joined(_measure(setting, name, dtype))
    return found


def _measure(setting: Setting, name: str, dtype: str) -> Found:
    product, flops = machine.product(dtype, setting)
    rate = flops / product
    seconds = {f"matrix product, {dtype}": product}
    ratios = {f"matrix product, {dtype}, TFLOP/s": rate / 1e12}
    fields = train_steps.steps_of(name, dtype)
    # Double backpropagation is timed alone: the memory that it allocates slows down
    # the functions that take turns with it.
    together = [label for label in fields if label != DOUBLE]
    alone = [label for label in fields if label == DOUBLE]
    flops_of: dict[str, float] = {}
    rounds: dict[str, list[float]] = {}
    for labels in (together, alone):
        steps: dict[str, TrainStep] = {}
        for label in labels:
            built = _build(setting, name, label, dtype, fields[label])
            if built is not None:
                steps[label], flops_of[label] = built
        rounds |= setting.take_turns(steps)
    for label, time in timing.medians(rounds).items():
        title = f"{name}, {label}, {dtype}"
        seconds[title] = time
        ratios[f"{title}: rate / matrix product"] = flops_of[label] / time / rate
    if STANDARD in rounds:
        others = [label for label in rounds if label != STANDARD]
        found = timing.ratios(rounds, *((label, STANDARD) for label in others))
        ratios |= {f"{name}, {title}": value for title, value in found.items()}
    return Found(seconds, ratios)


def _build(
    setting: Setting, name: str, label: str, dtype: str, fields: Mapping[str, object]
) -> tuple[TrainStep, float] | None:
    """A step that was made once, and its arithmetic; None if it needs more memory."""
    try:
        program = train_steps.make_program(
            name, setting.size_of(name), dtype, jax.devices()[0], **fields
        )
        step = TrainStep(setting, f"{name}, {label}, {dtype}", program, label)
        flops = step.flops()
        timing.wait(step())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"left out, too large for the memory: {name}, {label}", flush=True)
        return None
    return step, flops
