"""The linear layers of a Flax network, found by an abstract run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import tracers
from flax.linen.linear import canonicalize_padding
from jax import lax

from opnorm import linalg
from opnorm.linalg.dtypes import at_least_single

KINDS = {nn.Conv: "convolution", nn.Dense: "dense", nn.BatchNorm: "batch_norm"}
# These layers divide by a statistic of the example, so no constant bounds their slope.
NORMALIZATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
# In these operations a constant does not raise the slope in the other operand.
_ADDITIONS = {"add", "sub", "add_any", "max", "min", "concatenate", "clamp"}
_LOOPS = {"scan", "while", "cond"}
# A program of JAX, and a variable or literal of one. JAX makes neither type public.
Jaxpr = Any
Atom = Any
# The trace of the current operations, which may be compared only.
_current_trace: Callable[[], object] = tracers.current_trace


class Call(NamedTuple):
    """One call of a linear layer.

    Attributes:
      kind: "convolution", "dense" or "batch_norm".
      name: name of the module after the names of its parents, joined by ``/``.
      kernel: a function that returns the kernel, or the factors ``(C,)`` of the
        channels for a BatchNorm. It must be called after the abstract run.
      input_shape: shape of the input of one example.
      options: strides, padding, kernel_dilation and groups of a convolution.
      input: the input, which may be compared by identity only.
      output: the output, which may be compared by identity only.
      num_uses: number of operations that use the output; the result of the network
        counts as one.
    """

    kind: str
    name: str
    kernel: Callable[[], jax.Array]
    input_shape: tuple[int, ...]
    options: linalg.Options
    input: jax.Array
    output: jax.Array
    num_uses: int = 0


def search(
    module: nn.Module,
    variables: linalg.Variables,
    x: linalg.ArrayShape,
    call_options: linalg.Options,
) -> tuple[list[Call], tuple[str, ...]]:
    """Lists the calls of nn.Conv, nn.Dense and nn.BatchNorm in order.

    Args:
      module: as in :func:`opnorm.operators.layers`.
      variables: as in :func:`opnorm.operators.layers`.
      x: as in :func:`opnorm.operators.layers`.
      call_options: as in :func:`opnorm.operators.layers`.

    Returns:
      The calls, and the names of the other factors in the network: parameters of fewer
      than two dimensions that are not only added, and layers that normalise by the
      example.

    Raises:
      ValueError: for modules and options that cannot be written as a ``Call``, and for
        parameters of two or more dimensions that are not only added and are not the
        kernel of a call.
    """
    variables = nn.meta.unbox(variables)
    params = variables.get("params", {})
    calls: list[Call] = []
    counted: set[str] = set()
    normalizations: list[str] = []

    def run(
        params: linalg.Params, batch: jax.Array
    ) -> tuple[list[jax.Array], linalg.PyTree]:
        trace = _current_trace()

        def note(
            next_fun: Callable[..., linalg.PyTree],
            args: tuple[linalg.PyTree, ...],
            kwargs: dict[str, linalg.PyTree],
            context: nn.module.InterceptorContext,
        ) -> linalg.PyTree:
            module = context.module
            base = next((of for of in KINDS if isinstance(module, of)), None)
            if isinstance(module, NORMALIZATIONS) and context.method_name == "__call__":
                normalizations.append(_name(module))
            if base is None or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            kind = KINDS[base]
            if _current_trace() != trace:
                raise ValueError(
                    f"module {_name(module)!r} is called in a transformation inside "
                    "the network (as nn.scan, nn.RNN, nn.cond, nn.remat, nn.vmap), "
                    "which does not tell how often; it must be called without one."
                )
            _check_methods(module, base)
            if kind == "batch_norm":
                _check_running(module, args, kwargs)
            output = next_fun(*args, **kwargs)
            if kind != "batch_norm":
                _check_kernel(module, params)
            calls.append(_call(kind, module, variables, args, kwargs, output))
            names = ("scale", "bias") if kind == "batch_norm" else ("kernel",)
            counted.update("/".join((*module.path, name)) for name in names)
            return output

        with nn.intercept_methods(note):
            result = module.apply(
                {**variables, "params": params}, batch, **call_options
            )
        return [call.output for call in calls], result

    jaxpr = jax.make_jaxpr(run)(params, x).jaxpr
    takers = [
        *(equation.invars for equation in jaxpr.eqns),
        jaxpr.outvars[len(calls) :],
    ]

    def num_uses(variable: Atom) -> int:
        return sum(any(v is variable for v in taken) for taken in takers)

    uncounted = list(dict.fromkeys(normalizations))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found: list[set[int]] = [{number} for number in range(len(leaves))]
    of_input = [None] * (len(jaxpr.invars) - len(leaves))
    factors: set[int] = set()
    _trace(jaxpr, [*found, *of_input], factors)
    for number in sorted(factors):
        place, leaf = leaves[number]
        path = jax.tree_util.keystr(place, simple=True, separator="/")
        if path in counted or path.rpartition("/")[0] in normalizations:
            continue
        if len(leaf.shape) >= 2:
            raise ValueError(
                f"parameter {path!r} of {type(module).__name__} has shape "
                f"{leaf.shape} and is used by no layer that can be listed; "
                f"layers may be {', '.join(known.__name__ for known in KINDS)}."
            )
        uncounted.append(path)
    listed = [
        call._replace(num_uses=num_uses(variable))
        for call, variable in zip(calls, jaxpr.outvars, strict=False)
    ]
    return listed, tuple(uncounted)


def _trace(
    jaxpr: Jaxpr, given: Sequence[set[int] | None], factors: set[int]
) -> list[set[int] | None]:
    """Follows parameters through a program to the operations with the input.

    Args:
      jaxpr: the program.
      given: for each argument the numbers of the parameters that it is computed from,
        or None if it depends on the input.
      factors: a set to which the numbers of parameters are added that an operation
        other than an addition combines with the input.

    Returns:
      The set of parameters, or None, for each result.
    """
    known: dict[Atom, set[int] | None] = dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: Atom) -> set[int] | None:
        return set() if hasattr(atom, "val") else known.get(atom, set())

    for equation in jaxpr.eqns:
        parts = [read(atom) for atom in equation.invars]
        constants = set().union(*(part for part in parts if part is not None))
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        name = equation.primitive.name
        results: list[set[int] | None]
        if None not in parts:
            results = [constants] * len(equation.outvars)
        elif (
            name not in _LOOPS
            and len(getattr(inner, "invars", ())) == len(parts)
            and len(inner.outvars) == len(equation.outvars)
        ):
            results = _trace(inner, parts, factors)
        else:
            if name not in _ADDITIONS:
                factors |= constants
            results = [None] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _call(
    kind: str,
    module: nn.Module,
    variables: linalg.Variables,
    args: tuple[jax.Array, ...],
    kwargs: Mapping[str, jax.Array],
    output: jax.Array,
) -> Call:
    name = _name(module)
    given = args[0] if args else kwargs["x" if kind == "batch_norm" else "inputs"]
    if kind == "batch_norm":
        factors = _factors(module, name, variables)
        return Call(kind, name, factors, given.shape[1:], {}, given, output)
    kernel = _leaf(variables["params"], module.path, "kernel")
    if kind == "dense":
        shape = given.shape[1:] if given.ndim > 1 else given.shape
        return Call(kind, name, lambda: kernel, shape, {}, given, output)
    masked = (lambda: kernel) if module.mask is None else lambda: kernel * module.mask
    options = _options(module, name, kernel.ndim - 2)
    shape = given.shape[1 - kernel.ndim :]
    return Call(kind, name, masked, shape, options, given, output)


def _options(module: nn.Module, name: str, axes: int) -> linalg.Options:
    """The options of an nn.Conv, as functions of linalg take them."""

    def spread(value: int | Sequence[int] | None) -> tuple[int, ...]:
        return (value or 1,) * axes if isinstance(value, int | None) else tuple(value)

    if set(spread(module.input_dilation)) != {1}:
        raise ValueError(
            f"module {name!r} has input_dilation {module.input_dilation}; it must be 1."
        )
    dilation = spread(module.kernel_dilation)
    padding = canonicalize_padding(module.padding, axes)
    if padding == "CAUSAL":
        (size,) = spread(module.kernel_size)
        padding = ((dilation[0] * (size - 1), 0),)
    elif isinstance(padding, str) and padding not in ("SAME", "VALID", "CIRCULAR"):
        raise ValueError(
            f"module {name!r} has padding {padding!r}; it may be SAME, VALID, "
            "CIRCULAR, CAUSAL or numbers."
        )
    elif not isinstance(padding, str):
        padding = tuple((int(low), int(high)) for low, high in padding)
    return {
        "strides": spread(module.strides),
        "padding": padding,
        "kernel_dilation": dilation,
        "groups": module.feature_group_count,
    }


def _check_methods(module: nn.Module, base: type) -> None:
    """Refuses a subclass that may use its kernel in another way."""
    kinds = type(module).__mro__
    for kind in kinds[: kinds.index(base)]:
        for name in ("__call__", "param"):
            if name in vars(kind):
                raise ValueError(
                    f"module {_name(module)!r} is a {kind.__name__}, which has a "
                    f"{name} of its own; it must be that of {base.__name__}."
                )


def _check_kernel(module: nn.Module, params: linalg.Params) -> None:
    if module.variables["params"]["kernel"] is not _leaf(params, module.path, "kernel"):
        raise ValueError(
            f"module {_name(module)!r} has a kernel that is computed inside the "
            "network (as by nn.SpectralNorm); it must be a leaf of variables."
        )


def _check_running(
    module: nn.Module,
    args: tuple[linalg.PyTree, ...],
    kwargs: Mapping[str, linalg.PyTree],
) -> None:
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    running = module.use_running_average if given is None else given
    if not running:
        raise ValueError(
            f"module {_name(module)!r} is a BatchNorm on batch statistics, which make "
            "examples depend on each other; it must use running averages (as with "
            "train=False)."
        )


def _factors(
    module: nn.Module, name: str, variables: linalg.Variables
) -> Callable[[], jax.Array]:
    """``gamma / sqrt(running variance + epsilon)``, at least float32."""
    variance = _leaf(variables["batch_stats"], module.path, "var")
    if variance.ndim != 1 or module.axis != -1:
        raise ValueError(
            f"module {name!r} is a BatchNorm with axis {module.axis}; it must be -1."
        )
    gamma = (
        _leaf(variables["params"], module.path, "scale") if module.use_scale else 1.0
    )
    wide = at_least_single(variance.dtype)
    return lambda: gamma * lax.rsqrt(variance.astype(wide) + module.epsilon)


def _name(module: nn.Module) -> str:
    return "/".join(module.path) or type(module).__name__


def _leaf(tree: linalg.PyTree, path: Sequence[str], name: str) -> jax.Array:
    for part in path:
        tree = tree[part]
    leaf: jax.Array = tree[name]
    return leaf
