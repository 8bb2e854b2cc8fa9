"""A Flax module with its variables as one callable pytree."""

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
from flax import nnx


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

    variables: Any
    module: nn.Module = flax.struct.field(pytree_node=False)
    options: tuple[tuple[str, Any], ...] = flax.struct.field(
        pytree_node=False, default=()
    )
    field: str | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, x: jax.Array) -> Any:
        """Applies the module to a batch ``(B, ...)``."""
        outputs: Any = self.module.apply(self.variables, x, **dict(self.options))
        return outputs if self.field is None else getattr(outputs, self.field)

    @property
    def params(self) -> Any:
        """The trainable parameters."""
        return self.variables["params"]

    @property
    def batch_stats(self) -> Any:
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


def network(module: Any, variables: Any = None, **options: Any) -> Any:
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
      not show in it. An NNX module is a callable pytree itself, and may be given to the
      library as it is, in whichever mode it is.

    Raises:
      ValueError: for another kind of module, a Linen module without variables, or an
        NNX module with variables or options.
    """
    if isinstance(module, nnx.Module):
        if variables is not None or options:
            given = ["variables"] * (variables is not None) + sorted(options)
            raise ValueError(
                f"{given[0]} is given; an NNX module holds its variables and takes no "
                "options."
            )
        copy = nnx.clone(module)
        copy.eval()
        return copy
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module is a {type(module).__name__}; it must be a Flax module. A "
            "function of parameters and a batch becomes a network by "
            "jax.tree_util.Partial(apply, parameters)."
        )
    if not hasattr(variables, "items") or not all(
        hasattr(collection, "items") for collection in variables.values()
    ):
        raise ValueError(
            f"variables is a {type(variables).__name__}; it must be a dictionary of "
            'collections, such as {"params": ..., "batch_stats": ...}.'
        )
    return Network(dict(variables), module, tuple(sorted(options.items())))
