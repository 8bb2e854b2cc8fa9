"""Networks as arguments of compiled programs.

A network is any callable ``f(x)``. It may also be a JAX pytree, such as
``jax.tree_util.Partial(apply, variables)``, a Flax NNX module or an Equinox module. The
arrays of a callable pytree become arguments of a compiled program, and the program is
used again for every network of the same structure. The arrays that a plain function
closes over are unknown and may change between two calls, so a plain function is traced
again in each call.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax import lax

from opnorm.linalg.checks import check_network
from opnorm.linalg.types import ArrayShape, Network, PyTree

R = TypeVar("R")
Result = TypeVar("Result", covariant=True)
Arrays = tuple[jax.Array | np.ndarray | np.generic, ...]
# The options of a program in the order of their names.
Ordered = tuple[tuple[str, Hashable], ...]


class Prepared:
    """A plain function whose programs are kept during one measurement.

    Programs of the function are compiled once and released with this object, so that
    neither they nor the arrays in the function outlive the measurement.

    Args:
      f: the function. It must not change while this object is in use.
    """

    def __init__(self, f: Network) -> None:
        self._f = f
        self._programs: dict[Hashable, _Compiled[Any]] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        return self._f(*args)

    def program(self, fun: Callable[..., R], options: Ordered) -> "_Compiled[R]":
        """Returns ``fun(f, *args, **options)`` as a compiled function of ``args``."""
        if (fun, options) not in self._programs:
            self._programs[fun, options] = _fresh(fun, self._f, dict(options))
        return self._programs[fun, options]


def prepare_network(f: Network) -> Network:
    """Returns a network whose programs are compiled once for all calls that follow.

    A callable pytree comes back as it is. A plain function is wrapped, so that it is
    traced once for each program and not once for each batch.

    Args:
      f: ``(B, ...) -> (B, d)``, a callable pytree or a plain function.

    Raises:
      ValueError: if f cannot be called.
    """
    if not callable(f):
        raise ValueError(
            f"f is a {type(f).__name__}; it must be a function of a batch, or a pytree "
            "that can be called, such as jax.tree_util.Partial(apply, variables)."
        )
    if isinstance(f, Prepared) or split_network(f) is not None:
        return f
    return Prepared(f)


def keeps_programs(f: Network, *args: PyTree) -> bool:
    """Tells whether programs of f with these arguments are kept for later calls.

    Programs of a callable pytree are kept, unless a program around the call is being
    traced.
    """
    parts = None if isinstance(f, Prepared) else split_network(f)
    return parts is not None and not _is_traced((parts.arrays, args))


def place_network(f: Network, put: Callable[[Arrays], Arrays]) -> Network:
    """Returns a network with ``put`` applied to its arrays, such as a ``device_put``.

    The arrays that a plain function closes over stay where they are.

    Args:
      f: as :func:`prepare_network` returns it.
      put: a function of a tuple of arrays.
    """
    parts = None if isinstance(f, Prepared) else split_network(f)
    return f if parts is None else parts.structure.join(put(parts.arrays))


class NetworkProgram(Generic[R]):
    """A compiled function of a network, of arrays and of options.

    The program of a callable pytree is kept for all networks of the same structure,
    arrays of the same shapes, and equal options. The program of a plain function is
    traced in each call, unless :func:`prepare_network` returned the function. A program
    with a traced argument is a part of the program around it and is not kept.

    Args:
      fun: a pure function ``fun(f, *arrays, **options)``. Its options must be hashable,
        and are compared with ``==``.
    """

    def __init__(self, fun: Callable[..., R]) -> None:
        functools.update_wrapper(self, fun)
        self._fun = fun

        def shared(
            structure: _Structure, options: Ordered, arrays: Arrays, *args: PyTree
        ) -> R:
            f = structure.join(arrays)
            check_network(f)
            return fun(f, *args, **dict(options))

        # The name of the compiled program, in profiles.
        shared.__name__ = getattr(fun, "__name__", shared.__name__)
        self._shared: _Compiled[R] = jax.jit(shared, static_argnums=(0, 1))

    def __call__(self, f: Network, /, *args: PyTree, **options: Hashable) -> R:
        """Returns ``fun(f, *args, **options)``."""
        compiled, first = self._choose(f, args, options)
        return compiled(*first, *args)

    def eval_shape(self, f: Network, /, *args: PyTree, **options: Hashable) -> PyTree:
        """Returns the shapes and dtypes of the result.

        Nothing is compiled, and nothing is traced again where the program would not be.
        """
        compiled, first = self._choose(f, args, options)
        return compiled.eval_shape(*first, *args)

    def _choose(
        self, f: Network, args: tuple[PyTree, ...], options: Mapping[str, Hashable]
    ) -> tuple["_Compiled[R]", tuple[PyTree, ...]]:
        """A compiled function, and the arguments that come before ``args``."""
        ordered = tuple(sorted(options.items()))
        if isinstance(f, Prepared):
            return f.program(self._fun, ordered), ()
        parts = split_network(f)
        if parts is None or _is_traced((parts.arrays, args)):
            return _fresh(self._fun, f, options), ()
        return self._shared, (parts.structure, ordered, parts.arrays)


def network_program(fun: Callable[..., R]) -> NetworkProgram[R]:
    """Compiles ``fun(f, *arrays, **options)`` for a network f; a decorator.

    Args:
      fun: a pure function. Its options must be hashable, and are compared with ``==``.

    Returns:
      A function of the same arguments, whose options are given by keyword. See
      :class:`NetworkProgram` for the programs that are kept.

    Example:
      The arrays of a callable pytree are arguments, so a network with other weights
      uses the program that was compiled before.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg
      >>> @linalg.network_program
      ... def largest_output(f, x, *, sign):
      ...     print("traced")
      ...     return (sign * f(x)).max()
      >>> x = jnp.ones((2, 3))
      >>> for weight in (1.0, 2.0):
      ...     f = jax.tree_util.Partial(jnp.multiply, weight * jnp.arange(3.0))
      ...     print(largest_output(f, x, sign=1))
      traced
      2.0
      4.0
    """
    return NetworkProgram(fun)


def output_shapes(f: Network, x: ArrayShape, *rest: PyTree) -> PyTree:
    """Returns the shapes and dtypes of ``f(x, *rest)``; nothing is compiled.

    A callable pytree is traced once for its structure, a plain function each time.

    Args:
      f: ``(B, ...) -> (B, d)``, a callable pytree or a plain function.
      x: ``(B, ...)``, an array or a ``jax.ShapeDtypeStruct``.
      *rest: further arguments of f, such as keys.

    Returns:
      A ``jax.ShapeDtypeStruct``, or a tree of them.
    """
    return _apply.eval_shape(f, x, *rest)


class _Compiled(Protocol[Result]):
    """The part of a function under ``jax.jit`` that is used here."""

    def __call__(self, *args: PyTree) -> Result: ...

    def eval_shape(self, *args: PyTree) -> PyTree: ...


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A callable pytree without its arrays; hashable.

    Attributes:
      treedef: the structure of the pytree.
      others: the leaves that are not arrays, such as an activation function, by their
        position.
    """

    treedef: jax.tree_util.PyTreeDef
    others: tuple[tuple[int, Hashable], ...]

    def join(self, arrays: Arrays) -> Network:
        """Returns the network with the given arrays."""
        others = dict(self.others)
        given = iter(arrays)
        count = len(arrays) + len(others)
        leaves = [others[i] if i in others else next(given) for i in range(count)]
        network: Network = jax.tree.unflatten(self.treedef, leaves)
        return network


class Parts(NamedTuple):
    """A callable pytree in two parts.

    Attributes:
      structure: all but the arrays.
      arrays: the arrays, in the order of the leaves.
    """

    structure: _Structure
    arrays: Arrays


def split_network(f: Network) -> Parts | None:
    """Returns a callable pytree in two parts, and None for a plain function."""
    leaves, treedef = jax.tree.flatten(f)
    if len(leaves) == 1 and leaves[0] is f:
        return None
    kept = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    others = tuple(
        (i, leaf)
        for i, (leaf, is_array) in enumerate(zip(leaves, kept, strict=True))
        if not is_array
    )
    structure = _Structure(treedef, others)
    try:
        hash(structure)
    except TypeError:
        return None
    arrays = tuple(
        leaf for leaf, is_array in zip(leaves, kept, strict=True) if is_array
    )
    return Parts(structure, arrays)


def _fresh(
    fun: Callable[..., R], f: Network, options: Mapping[str, Hashable]
) -> _Compiled[R]:
    """A program of its own, since JAX keeps programs by the identity of a function."""
    check_network(f)
    compiled: _Compiled[R] = jax.jit(lambda *args: fun(f, *args, **options))
    return compiled


def _is_traced(tree: PyTree) -> bool:
    """Whether a program around this one is being traced.

    An option may hold a traced array, such as the epsilon of an attack, where no
    argument is traced. Every operation is traced then, and the last leaf shows that.
    """
    leaves = (*jax.tree.leaves(tree), lax.full((), 0))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


@network_program
def _apply(f: Network, x: ArrayShape, *rest: PyTree) -> PyTree:
    return f(x, *rest)
