"""A Flax module with its variables as one callable pytree."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, overload

import flax
import flax.linen as nn
import jax
from flax import nnx

# One collection of variables: nested dictionaries of arrays.
Collection = Mapping[str, Any]
Module = TypeVar("Module", bound=nnx.Module)

# Fields that are no leaves of the pytree.
_static: Callable[..., Any] = functools.partial(flax.struct.field, pytree_node=False)


@flax.struct.dataclass
class Network:
    """A Flax Linen module with its variables: ``network(x)``, and a pytree.

    The variables are its leaves, so they are arguments of every compiled program, and
    networks of one module share programs. ``network.replace(variables=...)`` gives
    another network of the module.

    Attributes:
      variables: the collections of the module, such as {"params": ..., "batch_stats":
        ...}.
      module: the module.
      options: further arguments of the module, by name.
      field: name of the field of the module's outputs that is returned; None for the
        outputs as they are.
    """

    variables: Mapping[str, Collection]
    module: nn.Module = _static()
    options: tuple[tuple[str, Hashable], ...] = _static(default=())
    field: str | None = _static(default=None)

    def __call__(self, x: jax.Array) -> Any:
        """Applies the module to a batch ``(B, ...)``; returns the module's outputs."""
        options: dict[str, Any] = dict(self.options)
        outputs = self.module.apply(self.variables, x, **options)
        return outputs if self.field is None else getattr(outputs, self.field)

    @property
    def params(self) -> Collection:
        """The trainable parameters."""
        return self.variables["params"]

    @property
    def batch_stats(self) -> Collection:
        """The running statistics of BatchNorm; empty if there are none."""
        return self.variables.get("batch_stats", {})

    @property
    def features(self) -> "Network":
        """The network up to its last linear layer, ``(B, ...) -> (B, F)``.

        Only the modules of :mod:`opnorm.models` have it.
        """
        return self._part("features")

    @property
    def preactivations(self) -> "Network":
        """The inputs of each layer of nonlinearities, a tuple of arrays.

        Only the modules of :mod:`opnorm.models` have it.
        """
        return self._part("preactivations")

    def _part(self, field: str) -> "Network":
        options = {**dict(self.options), "outputs": "all"}
        return dataclasses.replace(
            self, options=tuple(sorted(options.items())), field=field
        )


@overload
def network(
    module: nn.Module, variables: Mapping[str, Collection], **options: Hashable
) -> Network: ...


@overload
def network(module: Module) -> Module: ...


def network(
    module: nn.Module | nnx.Module,
    variables: Mapping[str, Collection] | None = None,
    **options: Hashable,
) -> Network | nnx.Module:
    """Returns a Flax module as a network ``f(x)`` that is also a pytree.

    Every function of the library takes such a network as ``f``, and compiles once for
    all networks of the same structure::

        f = opnorm.network(module, variables)
        f(x)                            # (B, K) logits
        opnorm.attacks.pga(p=2, epsilon=0.5)(f, x, labels, key)

    Args:
      module: a Flax Linen module, or an NNX module.
      variables: the collections of a Linen module, as ``module.init`` returns them;
        None for an NNX module, which holds its own.
      **options: further arguments of a Linen module, such as ``train=False``.

    Returns:
      A :class:`Network` of a Linen module. For an NNX module a copy of it in evaluation
      mode (no dropout, running statistics of BatchNorm): later changes of the module do
      not show in it. An NNX module is a callable pytree itself; in evaluation mode it
      may be given to the library as it is.

    Raises:
      ValueError: for another kind of module, a Linen module without variables, or an
        NNX module with variables or options.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> import opnorm
      >>> kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> module = nn.Dense(2, use_bias=False)
      >>> f = opnorm.network(module, {"params": {"kernel": kernel}})
      >>> f(jnp.array([[1.0, 10.0]])).tolist()
      [[31.0, 42.0]]
      >>> f.params["kernel"].shape
      (2, 2)
    """
    if isinstance(module, nnx.Module):
        if variables is not None or options:
            given = ["variables"] * (variables is not None) + sorted(options)
            raise ValueError(
                f"{given[0]} is given; an NNX module holds its variables and takes no "
                "options."
            )
        copy = nnx.clone(module)
        evaluate: Callable[[], None] = copy.eval
        evaluate()
        return copy
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module is a {type(module).__name__}; it must be a Flax module. A "
            "function of parameters and a batch becomes a network by "
            "jax.tree_util.Partial(apply, parameters)."
        )
    if not isinstance(variables, Mapping) or not all(
        isinstance(collection, Mapping) for collection in variables.values()
    ):
        raise ValueError(
            f"variables is a {type(variables).__name__}; it must be a dictionary of "
            'collections, such as {"params": ..., "batch_stats": ...}.'
        )
    return Network(dict(variables), module, tuple(sorted(options.items())))
