"""operators: runs a Flax network abstractly and notes its linear layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import tracers
from flax.linen.linear import canonicalize_padding
from jax import lax

KINDS = {nn.Conv: "convolution", nn.Dense: "dense", nn.BatchNorm: "batch_norm"}
# They divide by what they find in the example, so no constant bounds their slope.
NORMALIZATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
# Operations in which a constant does not raise the slope in the other operand.
_ADDITIONS = {"add", "sub", "add_any", "max", "min", "concatenate", "clamp"}
_LOOPS = {"scan", "while", "cond"}


class Call(NamedTuple):
    """One call of a linear layer.

    Attributes:
      kind: "convolution", "dense" or "batch_norm".
      name: of the module, ``/`` between its parents' names and its own.
      kernel: its kernel, of a BatchNorm what it multiplies the channels by, ``(C,)``;
        while the network runs, a function that returns it.
      input_shape: of one example.
      options: of a convolution: strides, padding, kernel_dilation and groups.
      input: what it was given, to be compared by identity only.
      output: what it returned, likewise.
      num_uses: how many operations take the output, the network's own result counted
        as one.
    """

    kind: str
    name: str
    kernel: Any
    input_shape: tuple[int, ...]
    options: dict[str, Any]
    input: Any
    output: Any
    num_uses: int = 0


def search(
    module: nn.Module, variables: Any, x: Any, call_options: dict[str, Any]
) -> tuple[list[Call], tuple[str, ...]]:
    """Lists the calls of nn.Conv, nn.Dense and nn.BatchNorm in order.

    Returns them and the names of the other factors in the network: parameters of fewer
    than two dimensions that are not only added, and layers that normalise by the
    example.

    Args:
      module, variables, x, call_options: as :func:`opnorm.operators.layers`.

    Raises:
      ValueError: for modules and options that cannot be written as a ``Call``, and for
        parameters of two or more dimensions that are not only added, but are no call's
        kernel.
    """
    variables = nn.meta.unbox(variables)
    params = variables.get("params", {})
    calls: list[Call] = []
    counted: set[str] = set()
    normalizations: list[str] = []

    def run(params: Any, batch: jax.Array) -> Any:
        trace = tracers.current_trace()

        def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            base = next((of for of in KINDS if isinstance(module, of)), None)
            if isinstance(module, NORMALIZATIONS) and context.method_name == "__call__":
                normalizations.append(_name(module))
            if base is None or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            kind = KINDS[base]
            if tracers.current_trace() != trace:
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

    def num_uses(variable: Any) -> int:
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
        # What is computed during the run must not leave it.
        call._replace(kernel=call.kernel(), num_uses=num_uses(variable))
        for call, variable in zip(calls, jaxpr.outvars, strict=False)
    ]
    return listed, tuple(uncounted)


def _trace(
    jaxpr: Any, given: Sequence[set[int] | None], factors: set[int]
) -> list[set[int] | None]:
    """Follows parameters through a program to where they meet the input.

    Args:
      jaxpr: the program.
      given: for each argument the numbers of the parameters that it is made of, or None
        if it depends on the input.
      factors: gains the numbers of parameters that meet the input in anything but an
        addition.

    Returns:
      The same for each result.
    """
    known: dict[Any, set[int] | None] = dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: Any) -> set[int] | None:
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
    kind: str, module: Any, variables: Any, args: Any, kwargs: Any, output: Any
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


def _options(module: Any, name: str, axes: int) -> dict[str, Any]:
    """The options of an nn.Conv in linalg's terms."""

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


def _check_methods(module: Any, base: type) -> None:
    """Refuses a subclass that may use its kernel otherwise, such as standardised."""
    kinds = type(module).__mro__
    for kind in kinds[: kinds.index(base)]:
        for name in ("__call__", "param"):
            if name in vars(kind):
                raise ValueError(
                    f"module {_name(module)!r} is a {kind.__name__}, which has a "
                    f"{name} of its own; it must be that of {base.__name__}."
                )


def _check_kernel(module: Any, params: Any) -> None:
    if module.variables["params"]["kernel"] is not _leaf(params, module.path, "kernel"):
        raise ValueError(
            f"module {_name(module)!r} has a kernel that is computed inside the "
            "network (as by nn.SpectralNorm); it must be a leaf of variables."
        )


def _check_running(module: Any, args: Any, kwargs: Any) -> None:
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    running = module.use_running_average if given is None else given
    if not running:
        raise ValueError(
            f"module {_name(module)!r} is a BatchNorm on batch statistics, which make "
            "examples depend on each other; it must use running averages (as with "
            "train=False)."
        )


def _factors(module: Any, name: str, variables: Any) -> Callable[[], jax.Array]:
    """``gamma / sqrt(running variance + epsilon)``, at least float32."""
    variance = _leaf(variables["batch_stats"], module.path, "var")
    if variance.ndim != 1 or module.axis != -1:
        raise ValueError(
            f"module {name!r} is a BatchNorm with axis {module.axis}; it must be -1."
        )
    gamma = (
        _leaf(variables["params"], module.path, "scale") if module.use_scale else 1.0
    )
    wide = jnp.promote_types(variance.dtype, jnp.float32)
    return lambda: gamma * lax.rsqrt(variance.astype(wide) + module.epsilon)


def _name(module: Any) -> str:
    return "/".join(module.path) or type(module).__name__


def _leaf(tree: Any, path: Sequence[str], name: str) -> Any:
    for part in path:
        tree = tree[part]
    return tree[name]
