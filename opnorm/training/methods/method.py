"""A training method as a pair of pure functions (init, loss), and its entry.

Which BatchNorm statistics a pass uses decides whether a method works, so each is
chosen on purpose:

- Searches (an attack, a power step) run in inference mode, on running statistics:
  only there are the rows independent, so that each example has a Jacobian. They are
  detached from the parameters, and do not touch the running statistics.
- Terms of the loss run in train mode. Under batch statistics the weights are
  scale-free; a penalty on running statistics would be lowered by shrinking the
  weights, which changes nothing once the statistics follow, and gave no robustness.
- Clean and perturbed examples share one train-mode pass, so they share statistics,
  which are updated once per step.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from opnorm.linalg import BatchFunction, Params, PyTree
from opnorm.training.config import Config
from opnorm.training.modes import Modes


class Batch(NamedTuple):
    """Examples of one step.

    Attributes:
      images: ``(B, H, W, C)`` float in [0, 1], augmented.
      labels: ``(B,)`` int.
      indices: ``(B,)`` int, the examples' places in the training set.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array


class Auxiliary(NamedTuple):
    """The results of a loss beside its value.

    Attributes:
      batch_stats: updated running statistics.
      method_state: updated state of the method.
      metrics: named scalars.
    """

    batch_stats: PyTree
    method_state: PyTree
    metrics: dict[str, jax.Array]


class Loss(Protocol):
    """``(params, batch_stats, state, batch, key) -> (scalar, Auxiliary)``."""

    def __call__(
        self,
        params: Params,
        batch_stats: PyTree,
        state: PyTree,
        batch: Batch,
        key: jax.Array,
        /,
    ) -> tuple[jax.Array, Auxiliary]: ...


Init = Callable[[Params, jax.Array, int, int], PyTree]


class Method(NamedTuple):
    """A training method.

    Attributes:
      init: ``(params, key, num_examples, num_classes) -> method_state``.
      loss: ``(params, batch_stats, method_state, batch, key) -> (scalar, Auxiliary)``,
        differentiable in params.
      deploy: ``(params, method_state) -> params`` of the network that was trained. It
        changes them where the loss begins by changing them.
    """

    init: Init
    loss: Loss
    deploy: Callable[[Params, PyTree], Params] = lambda params, method_state: params


# (f, images, labels, key) -> perturbed images, for a batch function f.
Perturb = Callable[[BatchFunction, jax.Array, jax.Array, jax.Array], jax.Array]


class Definition(NamedTuple):
    """The entry of a training method in the table.

    Attributes:
      summary: the loss in a line.
      create: ``(config, modes) -> Method`` for a validated configuration.
      fields: the fields of Config that this method uses and some other one does not.
        The methods without a field refuse a value other than its default.
      check: ``(config) -> None``, a ValueError for values of the fields that this
        method cannot be trained with.
      attack: ``(config, strength) -> Perturb``, the attack whose images the loss
        contains; None where there is no attack.
    """

    summary: str
    create: Callable[[Config, Modes], Method]
    fields: tuple[str, ...] = ()
    check: Callable[[Config], None] = lambda config: None
    attack: Callable[[Config, float | jax.Array], Perturb] | None = None


def no_state(
    params: Params, key: jax.Array, num_examples: int, num_classes: int
) -> PyTree:
    """The ``init`` of a method that remembers nothing between steps."""
    return {}
