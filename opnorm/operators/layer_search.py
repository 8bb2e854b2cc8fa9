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
) -> list[Call]:
    """Lists the calls of nn.Conv, nn.Dense and nn.BatchNorm in order.

    Args:
      module, variables, x, call_options: as :func:`opnorm.operators.layers`.

    Raises:
      ValueError: for modules and options that cannot be written as a ``Call``, and for
        parameters of two or more dimensions that are used but are no call's kernel.
    """
    variables = nn.meta.unbox(variables)
    params = variables.get("params", {})
    calls: list[Call] = []
    kernels: set[str] = set()

    def run(params: Any, batch: jax.Array) -> Any:
        trace = tracers.current_trace()

        def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            base = next((of for of in KINDS if isinstance(module, of)), None)
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
            kernels.add("/".join((*module.path, "kernel")))
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

    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (place, _), variable in zip(leaves, jaxpr.invars, strict=False):
        path = jax.tree_util.keystr(place, simple=True, separator="/")
        # What is added leaves the Jacobian as it is.
        counted = path in kernels or path.split("/")[-1] == "bias"
        if variable.aval.ndim >= 2 and not counted and num_uses(variable):
            raise ValueError(
                f"parameter {path!r} of {type(module).__name__} has shape "
                f"{variable.aval.shape} and is used by no layer that can be listed; "
                f"layers may be {', '.join(known.__name__ for known in KINDS)}."
            )
    return [
        # What is computed during the run must not leave it.
        call._replace(kernel=call.kernel(), num_uses=num_uses(variable))
        for call, variable in zip(calls, jaxpr.outvars, strict=False)
    ]


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
