"""The parts of a standard train step, by the times of partial programs.

The step is timed beside programs that leave parts out, in interleaved rounds, and a
part is the difference of two of them::

  gradients of kernels = all gradients - the gradients of biases alone
  gradients of inputs = the gradients of biases - the forward pass
  rest = step - augmentation - all gradients - optimiser

The gradients of biases need those of all inputs, and no gradient of a kernel. BatchNorm
and max-pooling are parts of the passes: BatchNorm is the difference to the gradients of
a network without it, max-pooling is timed alone, forward and backward.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments.benchmark.setting import Found, Setting, cnn7_program, read_batch
from experiments.benchmark.steps import TrainStep
from experiments.common import train_steps
from opnorm import data, linalg, models, training
from opnorm.linalg import Params, PyTree

_STEP = train_steps.STANDARD
_FORWARD, _BIASES, _ALL = "forward pass", "gradients of biases", "all gradients"
_AUGMENTATION, _OPTIMIZER = "augmentation", "optimiser"
_WITHOUT, _POOLING = "gradients without BatchNorm", "max-pooling"
# Each part is a sum of programs with signs.
_PARTS: dict[str, dict[str, int]] = {
    _AUGMENTATION: {_AUGMENTATION: 1},
    _FORWARD: {_FORWARD: 1},
    "gradients of inputs": {_BIASES: 1, _FORWARD: -1},
    "gradients of kernels": {_ALL: 1, _BIASES: -1},
    _OPTIMIZER: {_OPTIMIZER: 1},
    "rest": {_STEP: 1, _AUGMENTATION: -1, _ALL: -1, _OPTIMIZER: -1},
    "whole step": {_STEP: 1},
    "in the passes: BatchNorm in train mode": {_ALL: 1, _WITHOUT: -1},
    f"in the passes: {_POOLING}": {_POOLING: 1},
}


def measure(setting: Setting) -> Found:
    """Times a standard step of CNN7 and its parts."""
    images, labels = read_batch(setting.batch_size)
    program = cnn7_program(setting, augment=True, method="standard")
    step = TrainStep(setting, "whole step", program, "", images, labels)
    rounds = setting.take_turns({_STEP: step, **_programs(setting, program)})
    found = {
        part: {
            "seconds": statistics.median(_sum(rounds, signs)),
            "fraction": statistics.median(
                seconds / whole
                for seconds, whole in zip(
                    _sum(rounds, signs), rounds[_STEP], strict=True
                )
            ),
        }
        for part, signs in _PARTS.items()
    }
    return Found({}, {}, {"breakdown": found})


def _sum(rounds: Mapping[str, list[float]], signs: Mapping[str, int]) -> list[float]:
    times = np.array([rounds[name] for name in signs])
    return [float(t) for t in np.array(list(signs.values())) @ times]


def _programs(
    setting: Setting, program: training.Program
) -> dict[str, Callable[[], Any]]:
    """The partial programs, with their arguments on the device."""
    objective, optimizer = program.objective, program.optimizer
    state = program.initial_state(0)
    images, labels = read_batch(setting.batch_size)
    pixels, labels = jax.device_put((images, np.asarray(labels, np.int32)))
    x = jax.jit(data.to_float)(pixels)
    key = jax.random.key(0)
    indices = np.arange(setting.batch_size, dtype=np.int32)
    batch = training.Batch(x, labels, jax.device_put(indices))
    rest = (state.batch_stats, state.method_state, batch, key)
    biases = {n: {"bias": layer["bias"]} for n, layer in state.params.items()}
    loss = objective.method.loss

    def augment(pixels: jax.Array) -> jax.Array:
        assert program.augmentation is not None
        return program.augmentation(key, data.to_float(pixels))

    def of_biases(biases: Params, params: Params, *rest: Any) -> Any:
        joined = {name: layer | biases[name] for name, layer in params.items()}
        return loss(joined, *rest)

    def without_batch_norm(*args: Any) -> Any:
        with nn.intercept_methods(skip_batch_norm):
            return loss(*args)

    def update(gradient: Params, optimizer_state: PyTree, params: Params) -> Any:
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    def gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
        return linalg.fast_convolutions(jax.value_and_grad(loss, has_aux=True))

    params = state.params
    pooled = _pooled(objective.modes, params, state.batch_stats, x)
    timed: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        _AUGMENTATION: (augment, (pixels,)),
        _FORWARD: (linalg.fast_convolutions(loss), (params, *rest)),
        _BIASES: (gradient(of_biases), (biases, params, *rest)),
        _ALL: (gradient(loss), (params, *rest)),
        _WITHOUT: (gradient(without_batch_norm), (params, *rest)),
        _POOLING: (_pool, (pooled,)),
        _OPTIMIZER: (update, (params, state.optimizer_state, params)),
    }
    return {
        name: setting.compiled(name, fun, *args) for name, (fun, args) in timed.items()
    }


def skip_batch_norm(
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Replaces BatchNorm by the identity; for ``flax.linen.intercept_methods``."""
    return args[0] if isinstance(context.module, nn.BatchNorm) else run(*args, **kwargs)


def _pooled(
    modes: training.Modes, params: Params, batch_stats: PyTree, x: jax.Array
) -> list[jax.Array]:
    """Arrays of the shapes that max-pooling gets: the next layer gets fewer entries."""
    inputs: list[tuple[int, ...]] = []
    outputs: list[tuple[int, ...]] = []

    def record(
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        found = run(*args, **kwargs)
        if isinstance(context.module, nn.Conv | nn.Dense):
            inputs.append(args[0].shape)
            outputs.append(found.shape)
        return found

    def forward(params: Params, batch_stats: PyTree, x: jax.Array) -> Any:
        # A new function: JAX would not trace one again that it has traced.
        with nn.intercept_methods(record):
            return modes.train(params, batch_stats, x, jax.random.key(0))

    jax.eval_shape(forward, params, batch_stats, x)
    generator = np.random.default_rng(0)
    return [
        jax.device_put(generator.standard_normal(before, np.float32))
        for before, after in zip(outputs, inputs[1:], strict=False)
        if math.prod(before) > math.prod(after)
    ]


def _pool(arrays: list[jax.Array]) -> Any:
    """Pools each array, and pulls the values back as if they were cotangents."""

    def pull(array: jax.Array) -> Any:
        values, pull = jax.vjp(models.max_pool, array)
        return pull(values)

    return [pull(array) for array in arrays]
