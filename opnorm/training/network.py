"""training: the two faces of a Flax module, as pure functions of its variables."""

from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax


class TrainFunction(Protocol):
    """``(params, batch_stats, x) -> (logits, batch_stats)``."""

    def __call__(
        self, params: Any, batch_stats: Any, x: jax.Array
    ) -> tuple[jax.Array, Any]: ...


class InferFunction(Protocol):
    """``(params, batch_stats, x) -> logits``."""

    def __call__(self, params: Any, batch_stats: Any, x: jax.Array) -> jax.Array: ...


class Network(NamedTuple):
    """A module in its two BatchNorm modes.

    Attributes:
      train: ``(params, batch_stats, x) -> (logits, batch_stats)``, normalised by the
        statistics of the batch ``x``; rows depend on each other. Returns the updated
        running statistics.
      infer: ``(params, batch_stats, x) -> logits``, normalised by the running
        statistics: a batch function, whose rows are independent.
    """

    train: TrainFunction
    infer: InferFunction


def bind(module: nn.Module) -> Network:
    """Returns the two modes of a Flax module ``module(x, train=...)``."""

    def train(params: Any, batch_stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = module.apply(
            variables, x, train=True, mutable=["batch_stats"]
        )
        return logits, updated.get("batch_stats", batch_stats)

    def infer(params: Any, batch_stats: Any, x: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        logits: Any = module.apply(variables, x, train=False)
        return logits

    return Network(train, infer)


def init(
    module: nn.Module, key: jax.Array, image_shape: tuple[int, ...]
) -> tuple[Any, Any]:
    """Initialises a module: returns (params, batch_stats), the latter perhaps empty."""
    example = jax.numpy.zeros((1, *image_shape))
    variables = jax.jit(lambda key: module.init(key, example, train=False))(key)
    return variables["params"], variables.get("batch_stats", {})
