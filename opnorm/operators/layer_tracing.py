"""The linear layers of any network, found in its program.

The network is traced once. A convolution or a product with a value that does not depend
on the input is a layer, whatever framework made it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opnorm.linalg import ArrayShape, Network, PyTree
from opnorm.linalg.networks import Arrays, split_network
from opnorm.operators import layer_moves, layer_operations, layer_values
from opnorm.operators.known_values import parameter
from opnorm.operators.layer_graph import Graph, Node
from opnorm.operators.layer_reader import BATCH, Found, Jaxpr, Reader, join_node
from opnorm.operators.layer_values import Live, Value
from opnorm.operators.layers import BATCH_NORM, Layer

# Parts of paths of running statistics, and last parts that name the kind of parameter.
_STATISTICS = frozenset({"batch_stats", "var", "running_var", "variance"})
_LAST = frozenset({"kernel", "weight", "w", "scale", "var", "embedding"})
_HANDLERS = {**layer_operations.HANDLERS, **layer_moves.HANDLERS}


class Program(NamedTuple):
    """The layers of a program.

    Attributes:
      layers: the layers, in the order of the operations.
      names: the names of all arrays that ``sources`` and ``leaf`` count.
      graph: how they are joined; the last node is the result.
      uncounted: operations that no layer and no gain of the graph describes.
      ignored: sources of factors that were left out.
    """

    layers: list[Found]
    names: tuple[str, ...]
    graph: Graph
    uncounted: tuple[str, ...]
    ignored: tuple[frozenset[int], ...]


def find_layers(
    f: Network, x: ArrayShape, *, batch_norm: str = "fold"
) -> tuple[Layer, ...]:
    """Finds the linear layers of any network in its program.

    The network is traced once for two examples, and nothing but the kernels is
    computed. A convolution, a product with a matrix or a look-up in a table is a layer
    if one operand does not depend on the input. Its kernel may be a parameter, or be
    computed from parameters (as by weight normalisation). Factors that are parameters,
    such as those of a BatchNorm on running statistics, are layers too or are folded.
    Steps of ``lax.scan`` are read one by one, so a layer that is called several times
    is listed several times. Where a network copies the border of an image itself
    (periodic padding), the layer acts on the larger image.

    Constants (such as ``1 / std``), shapes, sums of branches, pooling and activations
    are no layers. :func:`log_lipschitz_bound` counts them. The slope of an activation
    is the largest one on a grid. An operation that is **not understood**, such as a
    product of two values of the network or LayerNorm, is named in ``uncounted`` of
    every layer, and functions of the whole network refuse it.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` in inference mode: a callable pytree,
        whose arrays are the parameters (an NNX or Equinox module,
        ``opnorm.network(module, variables)``, ``jax.tree_util.Partial(apply, params)``)
        or a plain function, whose parameters are the arrays that it closes over.
      x: ``(B, ...)``, an array or a ``jax.ShapeDtypeStruct``; float, or int for tokens.
      batch_norm: the place of factors that are parameters. With "fold" they are
        multiplied into the kernel of the layer before, if they alone use the output of
        that layer, channel by channel. Otherwise they are a layer of their own. With
        "separate" they are always a layer. With "ignore" they are left out.

    Returns:
      The layers in order of their operations. The name of a layer is the path of its
      parameter in ``f``, without containers such as "params" and without a last part
      such as "kernel" or "weight". Kernels have the form of :class:`Layer`, whatever
      the layout of the network is.

    Raises:
      ValueError: for an ``f`` that is no function or is a Linen module without its
        variables, an unknown ``batch_norm``, a network without layers, or one whose
        result does not depend on x.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> def apply(weights, x):
      ...     return jax.nn.relu(x @ weights["w1"]) @ weights["w2"].T
      >>> weights = {"w1": 3 * jnp.eye(2), "w2": 2 * jnp.eye(2)}
      >>> f = jax.tree_util.Partial(apply, weights)
      >>> layers = operators.find_layers(f, jnp.zeros((1, 2)))
      >>> [(layer.name, layer.kind) for layer in layers]
      [('w1', 'dense'), ('w2', 'dense')]
      >>> print(f"{jnp.exp(operators.log_lipschitz_bound(layers)):.2f}")
      6.00
    """
    if batch_norm not in BATCH_NORM:
        raise ValueError(
            f"batch_norm is {batch_norm!r}; it may be {', '.join(BATCH_NORM)}."
        )
    if isinstance(f, nn.Module) or not callable(f):
        raise ValueError(
            f"f is a {type(f).__name__}; it must be a function of a batch, such as "
            "opnorm.network(module, variables) or jax.tree_util.Partial(apply, params)."
        )
    example = np.zeros((BATCH, *x.shape[1:]), x.dtype)
    parts = split_network(f)
    arrays: Arrays = () if parts is None else parts.arrays

    def run(arrays: Arrays, x: jax.Array) -> PyTree:
        return (f if parts is None else parts.structure.join(arrays))(x)

    program = read_program(
        jax.make_jaxpr(run)(arrays, example),
        arrays,
        [] if parts is None else array_paths(f),
        scales=batch_norm,
        constants=parts is None,
    )
    if not program.layers:
        raise ValueError(
            f"f is a {type(f).__name__} without layers; it must multiply by a "
            "parameter of its own. Operations that are not understood: "
            f"{', '.join(program.uncounted) or 'none'}."
        )
    names = layer_names(program.names)

    def name(sources: frozenset[int]) -> str:
        return names[min(sources)] if sources else "constant"

    ignored = tuple(name(sources) for sources in program.ignored)
    return tuple(
        Layer(
            found.kernel(),
            name(frozenset([found.leaf]) if found.leaf is not None else found.sources),
            _kind(found, program.names),
            found.input_shape,
            **found.options,
            batch_norm=name(found.folded) if found.folded else None,
            uncounted=program.uncounted,
            ignored=ignored,
            transposed=found.transposed,
            path=None if found.leaf is None else program.names[found.leaf],
            steps=found.steps,
            graph=program.graph,
        )
        for found in program.layers
    )


def read_program(
    closed: Jaxpr,
    arrays: Arrays,
    names: Sequence[str],
    *,
    scales: str,
    constants: bool,
) -> Program:
    """Finds the layers of a program.

    Args:
      closed: a closed jaxpr of ``(*arrays, x)`` with a batch of :data:`BATCH` examples.
      arrays: the parameters.
      names: the names of the parameters.
      scales: "fold", "separate" or "ignore" for factors that are parameters.
      constants: whether constant arrays of the program are parameters, too.

    Returns:
      The layers and all that was not understood.

    Raises:
      ValueError: for a result that does not depend on x.
    """
    reader = Reader(_HANDLERS, names, scales=scales, constants=constants)
    given: list[Value] = [
        parameter(array, number) for number, array in enumerate(arrays)
    ]
    (x,) = closed.in_avals[len(arrays) :]
    reader.nodes.append(Node("input", -1, ()))
    reader.tokens = not jnp.issubdtype(x.dtype, jnp.floating)
    given.append(layer_values.fresh(x.shape, 0)._replace(discrete=reader.tokens))
    fixed = [reader.constant(constant) for constant in closed.consts]
    results = reader.run(closed.jaxpr, fixed, given)
    live = [v for v in results if isinstance(v, Live) and not v.discrete]
    if not live:
        raise ValueError("f returns no floating point array that depends on x.")
    reader.nodes.append(join_node("stack", [reader.settle(value) for value in live]))
    return Program(
        reader.layers,
        tuple(reader.names),
        tuple(reader.nodes),
        tuple(dict.fromkeys(reader.uncounted)),
        tuple(dict.fromkeys(reader.ignored)),
    )


def _kind(found: Found, names: Sequence[str]) -> str:
    """The kind of a layer; factors with running statistics are a BatchNorm."""
    statistics = any(_STATISTICS & set(names[n].split("/")) for n in found.sources)
    return "batch_norm" if found.kind == "scale" and statistics else found.kind


def array_paths(f: Network) -> list[str]:
    """Returns the paths of the arrays of a network, in their order."""
    leaves = jax.tree_util.tree_leaves_with_path(f)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if isinstance(leaf, jax.Array | np.ndarray | np.generic)
    ]


def layer_names(paths: Sequence[str]) -> list[str]:
    """Returns short names of parameters, the paths where these are not unique."""
    short = []
    for path in paths:
        parts = path.split("/")
        for collection in ("params", "batch_stats"):
            if collection in parts:
                parts = parts[parts.index(collection) + 1 :]
        if parts[:1] == ["0"] and parts[1:2] and parts[1].isdigit():
            # The first argument of a Partial.
            parts = parts[2:] or parts
        if parts[0] == "_fun":
            # The function that a wrapper of Equinox maps.
            parts = parts[1:] or parts
        if parts[-1:] == ["value"]:
            parts = parts[:-1]
        if parts[-1:] and parts[-1] in _LAST and parts[:-1]:
            parts = parts[:-1]
        short.append("/".join(parts) or path)
    return short
