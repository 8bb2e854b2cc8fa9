"""A Flax module in training and in inference, as pure functions of its variables."""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax

from opnorm import linalg, operators
from opnorm.linalg import Params, PyTree, Variables

# The number that is folded into a step's key for dropout; a word in ASCII.
_DROPOUT = int.from_bytes(b"drop", "big")


class TrainFunction(Protocol):
    """``(params, batch_stats, x, key) -> (logits, batch_stats)``."""

    def __call__(
        self, params: Params, batch_stats: PyTree, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree]: ...


class InferFunction(Protocol):
    """``(params, batch_stats, x) -> logits``."""

    def __call__(
        self, params: Params, batch_stats: PyTree, x: jax.Array
    ) -> jax.Array: ...


class Modes(NamedTuple):
    """A module in training and in inference.

    Attributes:
      train: ``(params, batch_stats, x, key) -> (logits, batch_stats)``, normalised by
        the statistics of the batch ``x``; rows depend on each other. Returns the
        updated running statistics. A network with dropout drops entries by the
        key, which is that of the step, so a resumed run drops the same ones.
      infer: ``(params, batch_stats, x) -> logits``, normalised by the running
        statistics and without dropout: a batch function, whose rows are independent.
      layers: ``(H, W, C) ->`` the layers on images of that shape, without BatchNorm;
        their kernels are shapes only, and nothing is computed.
    """

    train: TrainFunction
    infer: InferFunction
    layers: Callable[[tuple[int, ...]], tuple[operators.Layer, ...]]


def create(module: nn.Module) -> Modes:
    """Returns the modes of a Flax module ``module(x, train=...)``."""

    drops = bool(getattr(module, "dropout", 0.0))

    def train(
        params: Params, batch_stats: PyTree, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        # The searches of the step have used the key itself.
        rngs = {"dropout": jax.random.fold_in(key, _DROPOUT)} if drops else None
        logits, updated = module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return logits, updated.get("batch_stats", batch_stats)

    def infer(params: Params, batch_stats: PyTree, x: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs: PyTree = module.apply(variables, x, train=False)
        logits: jax.Array = outputs
        return logits

    def layers(image_shape: tuple[int, ...]) -> tuple[operators.Layer, ...]:
        # Rematerialised kernels are computed inside the network.
        rematerialized = getattr(module, "rematerialize", False)
        plain = module.clone(rematerialize=False) if rematerialized else module
        example = jax.numpy.zeros((1, *image_shape))

        def find(key: jax.Array) -> tuple[operators.Layer, ...]:
            variables = plain.init(key, example, train=False)
            return operators.layers(
                plain, variables, example, batch_norm="ignore", train=False
            )

        found: tuple[operators.Layer, ...] = jax.eval_shape(find, jax.random.key(0))
        return found

    return Modes(train, infer, layers)


def init(
    module: nn.Module, key: jax.Array, image_shape: tuple[int, ...]
) -> tuple[Params, PyTree]:
    """Initialises a module: returns (params, batch_stats), the latter perhaps empty."""
    variables = _initializer(module, tuple(image_shape))(key)
    return variables["params"], variables.get("batch_stats", {})


# Runs of one network compile it once.
@functools.lru_cache(maxsize=8)
def _initializer(
    module: nn.Module, image_shape: tuple[int, ...]
) -> Callable[[jax.Array], Variables]:
    def initialize(key: jax.Array) -> Variables:
        example = jax.numpy.zeros((1, *image_shape))
        variables: Variables = module.init(key, example, train=False)
        return variables

    return linalg.jit()(initialize)
