"""experiments: what training steps of large networks cost, for the benchmark.

Arithmetic is XLA's count for the program before optimisation. The count takes the body
of a loop once, so what K steps of an attack add is K - 1 times the count of one
gradient in the input. A rate is the arithmetic over the median time, and is compared
with what the device reaches on a product of two large matrices in the same dtype.

In forward passes of one batch, a standard step is 3, and one with the gradient penalty
on a part f of the batch 3 + 5 f: 2 f to find directions, 3 (1 + f) for the loss. So the
default, a half, is 1.83 standard steps, and the paper's whole batch 2.67.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import timing
from opnorm import attacks, regularizers, training

ATTACK_STEPS = 10


class Size(NamedTuple):
    """What a network is measured at.

    Attributes:
      width: of :func:`opnorm.models.create`.
      batch_size: examples per step.
      image_size: height and width of the pictures.
      num_classes: number of logits.
    """

    width: int
    batch_size: int
    image_size: int
    num_classes: int


# As in the papers, for accelerators.
FULL = {
    "cnn7": Size(128, 512, 32, 10),
    "wrn28": Size(10, 256, 32, 10),
    "resnext34": Size(32, 256, 32, 10),
    "resnet50": Size(64, 256, 224, 1000),
}
# So that the same rows take seconds on two cores. With fewer pictures ResNet-50's times
# are overhead, and their ratios vary by a factor of 1.7 from run to run.
REDUCED = {
    "cnn7": Size(16, 64, 32, 10),
    "wrn28": Size(1, 32, 32, 10),
    "resnext34": Size(8, 32, 32, 10),
    "resnet50": Size(16, 32, 64, 1000),
}
ADVERSARIAL = ("cnn7", "wrn28")
REGULARIZED = ("resnext34", "resnet50")
STANDARD = "standard step"
DOUBLE = "double backpropagation"


class TrainStep(NamedTuple):
    """A compiled train step and its arithmetic.

    Attributes:
      run: takes a batch of images, labels and indices on the device, or none for one
        that is always the same.
      flops: of a step.
    """

    run: Callable[..., Any]
    flops: float


def measure(
    compilations: timing.Compilations,
    name: str,
    *,
    full_size: bool,
    compute_dtype: str,
    num_rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times train steps of a network.

    Steps that do not fit into the device's memory are left out, with a line that says
    so.

    Args:
      compilations: counts what is compiled.
      name: of the network, out of ``FULL``.
      full_size: as in the papers, or reduced.
      compute_dtype: "float32" or "bfloat16"; finite differences are in float32.
      num_rounds: interleaved rounds.

    Returns:
      (seconds by name, ratios by name). Among the ratios are rates in TFLOP/s.
    """
    seconds: dict[str, float] = {}
    ratios: dict[str, float] = {}
    dtypes = dict.fromkeys(
        [compute_dtype, *(["float32"] if name in REGULARIZED else [])]
    )
    for dtype in dtypes:
        time, flops = _product(dtype, num_rounds)
        rate = flops / time
        seconds[f"matrix product, {dtype}"] = time
        ratios[f"matrix product, {dtype}, TFLOP/s"] = rate / 1e12
        builds: dict[str, Callable[[], TrainStep]] = {
            label: functools.partial(
                train_step,
                compilations,
                name,
                size_of(name, full_size),
                label,
                dtype,
                **options,
            )
            for label, options in steps_of(name, dtype).items()
        }
        # By itself: what it allocates slows down whoever comes next.
        alone = {DOUBLE: builds.pop(DOUBLE)} if DOUBLE in builds else {}
        steps: dict[str, TrainStep] = {}
        rounds: dict[str, list[float]] = {}
        for group in (builds, alone):
            fitting = _that_fit(group, name)
            rounds |= timing.take_turns(
                {label: step.run for label, step in fitting.items()}, num_rounds
            )
            steps |= fitting
        for label, time in timing.medians(rounds).items():
            seconds[f"{name}, {label}, {dtype}"] = time
            ratios[f"{name}, {label}, {dtype}: rate / matrix product"] = (
                steps[label].flops / time / rate
            )
        for label in rounds:
            if label != STANDARD and STANDARD in rounds:
                ratios[f"{name}, {label} / {STANDARD}"] = timing.ratio(
                    rounds, label, STANDARD
                )
    return seconds, ratios


def _that_fit(
    builds: Mapping[str, Callable[[], TrainStep]], name: str
) -> dict[str, TrainStep]:
    """Builds steps and takes each once, without those that need too much memory."""
    steps = {}
    for label, build in builds.items():
        try:
            step = build()
            jax.block_until_ready(step.run())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"left out, too large for the memory: {name}, {label}", flush=True)
            continue
        steps[label] = step
    return steps


def check_names(names: Sequence[str]) -> None:
    """Raises a ValueError unless there is a network of each name."""
    for name in names:
        if name not in FULL:
            raise ValueError(f"networks has {name!r}; it may have {', '.join(FULL)}.")


def size_of(name: str, full_size: bool) -> Size:
    """What a network is measured at."""
    return (FULL if full_size else REDUCED)[name]


def steps_of(name: str, dtype: str) -> dict[str, dict[str, Any]]:
    """The steps of a network in a dtype: options of :func:`parts` by label."""
    steps: dict[str, dict[str, Any]] = {STANDARD: {"method_name": "standard"}}
    if name in ADVERSARIAL:
        steps["adversarial-only step"] = {"method_name": "adversarial_only"}
    # A finite difference in half precision would be rounding.
    if name in REGULARIZED and dtype == "float32":
        half = "gradient regularisation"
        steps[half] = {"method_name": "gradient_regularization"}
        steps[f"{half}, whole batch"] = {**steps[half], "penalty_fraction": 1.0}
        steps[DOUBLE] = {"method_name": DOUBLE}
    return steps


class Parts(NamedTuple):
    """What a train step is made of.

    Attributes:
      objective: the network in its two BatchNorm modes.
      method: what is minimised.
      optimizer: the default one.
      image_shape: (H, W, C).
    """

    objective: training.Objective
    method: training.Method
    optimizer: Any
    image_shape: tuple[int, int, int]


def parts(
    name: str, size: Size, dtype: str, *, method_name: str, **options: Any
) -> Parts:
    """Builds a train step's parts, without computing anything.

    Args:
      name: of the network.
      size: of the network and its batches.
      dtype: what the network computes in.
      method_name: of ``Config.method``, or ``DOUBLE``.
      **options: other fields of the configuration.
    """
    double = method_name == DOUBLE
    config = training.Config(
        model=name,
        width=size.width,
        method="standard" if double else method_name,
        num_steps=ATTACK_STEPS,
        compute_dtype=dtype,
        batch_size=size.batch_size,
        **options,
    )
    shape = (size.image_size, size.image_size, 3)
    objective = training.make_objective(config, size.num_classes, shape)
    method = objective.method
    if double:
        method = method._replace(loss=_double_backpropagation(objective.modes))
    plan = training.make_plan(config, 100 * size.batch_size)
    program = training.Program(objective, plan, training.data_mesh(jax.devices()[:1]))
    return Parts(objective, method, program.optimizer, shape)


def train_step(
    compilations: timing.Compilations,
    name: str,
    size: Size,
    label: str,
    dtype: str,
    **options: Any,
) -> TrainStep:
    """Compiles one step of a method on one device.

    Args:
      compilations: counts what is compiled.
      name: of the network.
      size: of the network and its batches.
      label: what counts and results call the step.
      dtype: what the network computes in.
      **options: of :func:`parts`.
    """
    objective, method, optimizer, shape = parts(name, size, dtype, **options)
    params, batch_stats = objective.init(jax.random.key(0))
    counted = method._replace(
        loss=compilations.wrap(f"{name}, {label}, {dtype}", method.loss)
    )
    mesh = training.data_mesh(jax.devices()[:1])
    state = training.init_state(
        params,
        batch_stats,
        method,
        optimizer,
        jax.random.key(0),
        num_examples=size.batch_size,
        num_classes=size.num_classes,
    )
    # Buffers that nothing else holds, because the step takes them.
    state = training.place(state, training.state_shardings(state, mesh, "replicated"))
    step: Any = training.make_step(counted, optimizer, mesh)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (size.batch_size, *shape), np.uint8)
    labels = generator.integers(0, size.num_classes, size.batch_size, np.int32)
    batch = jax.device_put(
        (images, labels, np.arange(size.batch_size, dtype=np.int32)),
        training.sharded(mesh),
    )
    flops = step.lower(state, *batch).cost_analysis()["flops"]
    if options["method_name"] == "adversarial_only":
        flops += (ATTACK_STEPS - 1) * _input_gradient_flops(
            objective.modes, params, batch_stats, images.shape, batch[1]
        )
    holder = [state]

    def run(given: Any = None) -> Any:
        holder[0], metrics = step(holder[0], *(given or batch))
        return metrics

    return TrainStep(run, flops)


def _double_backpropagation(net: training.Modes) -> Callable[..., Any]:
    """The loss of gradient regularisation without a finite difference."""

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: training.Batch, key: jax.Array
    ) -> tuple[jax.Array, training.Auxiliary]:
        del key

        def losses(x: jax.Array) -> jax.Array:
            logits = net.infer(params, batch_stats, x)
            return attacks.cross_entropy(logits, batch.labels)

        logits, updated = net.train(params, batch_stats, batch.images)
        clean = attacks.cross_entropy(logits, batch.labels).mean()
        penalty = regularizers.gradient_penalty(
            losses, batch.images, method="double_backpropagation"
        )
        return clean + penalty.value.mean(), training.Auxiliary(updated, state, {})

    return loss


def _input_gradient_flops(
    net: training.Modes,
    params: Any,
    batch_stats: Any,
    shape: tuple[int, ...],
    labels: jax.Array,
) -> float:
    def total(x: jax.Array) -> jax.Array:
        return attacks.cross_entropy(net.infer(params, batch_stats, x), labels).sum()

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    counted: Any = jax.jit(jax.grad(total)).lower(x).cost_analysis()
    return counted["flops"]


def _product(dtype: str, num_rounds: int) -> tuple[float, float]:
    """Seconds and FLOP of the product of two large matrices."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    product = jax.jit(jnp.matmul)
    rounds = timing.take_turns({"product": lambda: product(a, a)}, num_rounds)
    return timing.medians(rounds)["product"], 2.0 * n**3
