"""Train steps to be timed, each with its state and a batch on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.setting import Setting
from experiments.common import train_steps
from opnorm import attacks, models, training

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class TrainStep:
    """One step of a method on one device; each call makes a step.

    Args:
      setting: counts the compilation.
      title: the name of the step in that count.
      program: the network and the method.
      label: as in :func:`experiments.common.train_steps.make_step`.
      images: ``(B, H, W, C)`` uint8; None for random ones.
      labels: ``(B,)`` int; None for random ones.
    """

    def __init__(
        self,
        setting: Setting,
        title: str,
        program: training.Program,
        label: str = "",
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        def wrap(loss: Callable[..., Any]) -> Callable[..., Any]:
            return setting.compilations.wrap(title, loss)

        self._step = train_steps.make_step(program, label, wrap)
        # The step takes these buffers, so nothing else may hold them.
        state = program.initial_state(0)
        self._state = training.place(state, program.shardings(state))
        self._program = program
        objective, batch_size = program.objective, program.plan.num_examples
        generator = np.random.default_rng(0)
        if images is None:
            shape = (batch_size, *objective.image_shape)
            images = generator.integers(0, 256, shape, np.uint8)
        if labels is None:
            labels = generator.integers(0, objective.num_classes, batch_size, np.int32)
        indices = np.arange(batch_size, dtype=np.int32)
        self._batch: Any = jax.device_put(
            (images, labels, indices), training.sharded(program.mesh)
        )

    def __call__(self, batch: Any = None) -> Any:
        """Makes a step on a batch on the device, or on one that is always the same."""
        self._state, metrics = self._step(self._state, *(batch or self._batch))
        return metrics

    def flops(self) -> float:
        """Counts the arithmetic of a step before XLA optimises it.

        XLA's count takes the body of a loop once, so K steps of an attack add K - 1
        times the count of one gradient in the input.
        """
        lowered = self._step.lower(self._state, *self._batch)
        flops = float(lowered.cost_analysis()["flops"])
        if self._program.objective.config.method == "adversarial_only":
            flops += (train_steps.ATTACK_STEPS - 1) * self._input_gradient_flops()
        return flops

    def _input_gradient_flops(self) -> float:
        images, labels, _ = self._batch

        def total(f: models.Network, x: jax.Array) -> jax.Array:
            return attacks.cross_entropy(f(x), labels).sum()

        x = jax.eval_shape(lambda: jnp.zeros(images.shape))
        f = self._program.network(self._state)
        counted: Any = jax.jit(jax.grad(total, argnums=1)).lower(f, x).cost_analysis()
        return float(counted["flops"])
