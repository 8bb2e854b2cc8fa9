"""The linear layers of a Flax network, their norms and singular values."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from opnorm import linalg
from opnorm.linalg import ArrayShape, Options, Variables
from opnorm.linalg.convolution import Padding
from opnorm.linalg.dtypes import at_least_single
from opnorm.operators.kernel_forms import Steps
from opnorm.operators.layer_graph import Graph, log_bound, num_layers
from opnorm.operators.layer_search import Call, search

BATCH_NORM = ("fold", "separate", "ignore")
FORMS = ("operator", "kernel")
# Marks a field of a dataclass of Flax that is a part of the structure of the pytree.
_STATIC = {"pytree_node": False}


@struct.dataclass
class Layer:
    """A call of a linear layer, without its bias; a pytree whose leaf is the kernel.

    Attributes:
      kernel: ``(*spatial, C_in / groups, C_out)`` for a convolution, ``(C_in, C_out)``
        for a dense layer, and the factors ``(C,)`` of the channels for a BatchNorm.
      name: name of the module after the names of its parents, joined by ``/``.
      kind: "convolution", "dense" or "batch_norm"; from :func:`find_layers` also
        "scale" for other factors that are parameters, with a kernel like that of a
        BatchNorm, and "embedding" for a table, a dense layer that acts on one-hot
        vectors.
      input_shape: ``(*spatial, C_in)``, the shape of the input of one example. A dense
        layer acts on the last axis, in the same way at every place.
      strides: strides of a convolution, as in :func:`opnorm.linalg.convolution_map`.
      padding: padding of a convolution, likewise.
      kernel_dilation: dilation of a convolution, likewise.
      groups: groups of a convolution, likewise.
      batch_norm: name of the BatchNorm whose factors the kernel contains, or None.
      uncounted: names of factors of the network that are in no kernel: parameters such
        as gains, and layers that normalise by the example. All layers of a network have
        the same names here.
      ignored: names of the BatchNorms of the network that were left out; the same for
        all layers.
      transposed: whether the layer is the transpose of the convolution that kernel,
        options and input_shape describe (nn.ConvTranspose). ``input_shape`` is then the
        shape of its output.
      path: path of the parameter whose entries the kernel holds, in the tree of the
        network; "" for ``name/kernel``, None for a kernel that the network computes.
      steps: the moves that make the kernel of that parameter.
      graph: how all layers of the network are joined; the same for all layers, and
        empty from :func:`layers`.
    """

    kernel: jax.Array
    name: str = dataclasses.field(metadata=_STATIC)
    kind: str = dataclasses.field(metadata=_STATIC)
    input_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    strides: tuple[int, ...] = dataclasses.field(metadata=_STATIC, default=())
    padding: Padding = dataclasses.field(metadata=_STATIC, default="VALID")
    kernel_dilation: tuple[int, ...] = dataclasses.field(metadata=_STATIC, default=())
    groups: int = dataclasses.field(metadata=_STATIC, default=1)
    batch_norm: str | None = dataclasses.field(metadata=_STATIC, default=None)
    uncounted: tuple[str, ...] = dataclasses.field(metadata=_STATIC, default=())
    ignored: tuple[str, ...] = dataclasses.field(metadata=_STATIC, default=())
    transposed: bool = dataclasses.field(metadata=_STATIC, default=False)
    path: str | None = dataclasses.field(metadata=_STATIC, default="")
    steps: Steps = dataclasses.field(metadata=_STATIC, default=())
    graph: Graph = dataclasses.field(metadata=_STATIC, default=())

    @property
    def options(self) -> Options:
        """The options of functions of convolutions, without kernel and shape."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "kernel_dilation": self.kernel_dilation,
            "groups": self.groups,
        }

    @property
    def has_factors(self) -> bool:
        """Whether the kernel is ``(C,)``, the factors of the last axis."""
        return self.kind in ("batch_norm", "scale")


class LayerNorms(NamedTuple):
    """Spectral norms of L layers, all ``(L,)``.

    Attributes:
      value: norm of the linear map, a lower bound up to rounding.
      residual: some singular value is within this distance of the value; 0 where a
        whole decomposition gave the value.
      lower: at most the norm, rounding included.
      upper: at least the norm, rounding included.
      kernel_matrix: norm of the kernel matrix, which is no bound of the norm of a
        convolution (:func:`opnorm.linalg.kernel_matrix_norm`).
    """

    value: jax.Array
    residual: jax.Array
    lower: jax.Array
    upper: jax.Array
    kernel_matrix: jax.Array


def layers(
    module: nn.Module,
    variables: Variables,
    x: ArrayShape,
    *,
    batch_norm: str = "fold",
    **call_options: Any,
) -> tuple[Layer, ...]:
    """Finds every nn.Conv, nn.Dense and nn.BatchNorm call of a Linen module, in order.

    :func:`find_layers` takes any network, and more kinds of layers.

    The network runs abstractly, so only the folded kernels are computed. A module that
    is called twice is listed twice. Every parameter of two or more dimensions that is
    not only added is a kernel of some layer. Other factors, such as gains and the
    scales of LayerNorm and GroupNorm, are **no layers**. Their names are in
    ``uncounted`` of every layer, and functions of the whole network
    (:func:`log_lipschitz_bound`, :func:`log_capacity`,
    :func:`log_spectral_complexity`) refuse them. Pooling, activations and sums are not
    listed either.

    Args:
      module: a Flax linen module (``flax.linen.Module``), called
        as ``module(x, **call_options)``.
      variables: the variables of the module, ``{"params": ..., "batch_stats": ...}``.
      x: ``(B, ...)``, an array or a ``jax.ShapeDtypeStruct``.
      batch_norm: the place of the factors ``gamma / sqrt(running variance + epsilon)``.
        With "fold" they are multiplied into the kernel of the layer before, if the
        BatchNorm alone uses the output of that layer. Otherwise (a sum in a
        pre-activation residual network, an output that is shared) they are a layer of
        their own. With "separate" they are always a layer. With "ignore" they are left
        out, for quantities of the weights alone.
      **call_options: options of the call, such as ``train=False``; BatchNorm must use
        running averages.

    Returns:
      The layers in order of their calls.

    Raises:
      ValueError: for a module that is not Flax linen, or an unknown ``batch_norm``; for
        a network without layers; for a network that multiplies by a parameter of two or
        more dimensions that is not a kernel of a layer (nn.ConvTranspose, nn.Embed, a
        matrix); for kernels that are computed inside the network (nn.SpectralNorm, a
        subclass of a layer with its own ``__call__`` or ``param``); for layers that are
        called in a transformation (nn.scan, nn.RNN, nn.remat, nn.vmap; clone a model of
        this library with ``rematerialize=False``); for input dilation or reflected
        padding; for a BatchNorm on batch statistics or on another axis than the last.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
      >>> x = jnp.zeros((1, 3))
      >>> variables = jax.eval_shape(module.init, jax.random.key(0), x)
      >>> for layer in operators.layers(module, variables, x):
      ...     print(layer.name, layer.kind, layer.kernel.shape)
      layers_0 dense (3, 4)
      layers_2 dense (4, 2)
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module is {type(module).__name__}; it must be a Flax linen module. "
            "operators.find_layers(f, x) takes any network."
        )
    if batch_norm not in BATCH_NORM:
        raise ValueError(
            f"batch_norm is {batch_norm!r}; it may be {', '.join(BATCH_NORM)}."
        )
    found: list[Layer] = []
    outputs: list[jax.Array | None] = []
    calls, uncounted = search(module, variables, x, call_options)
    for call in calls:
        if call.kind != "batch_norm":
            found.append(_layer(call))
            outputs.append(call.output if call.num_uses == 1 else None)
            continue
        source = [i for i, output in enumerate(outputs) if output is call.input]
        if batch_norm == "ignore":
            continue
        if batch_norm == "fold" and source:
            before = found[source[0]]
            found[source[0]] = dataclasses.replace(
                before, kernel=before.kernel * call.kernel(), batch_norm=call.name
            )
            outputs[source[0]] = None
        else:
            found.append(_layer(call))
            outputs.append(None)
    if not found:
        raise ValueError(
            f"module is {type(module).__name__}; it must call an nn.Conv or nn.Dense."
        )
    norms = [call.name for call in calls if call.kind == "batch_norm"]
    ignored = tuple(norms) if batch_norm == "ignore" else ()
    return tuple(
        dataclasses.replace(layer, uncounted=uncounted, ignored=ignored)
        for layer in found
    )


def check_counted(layers: Sequence[Layer], *, batch_norm: bool = False) -> None:
    """Raises ValueError if a network has factors that are in no kernel of its layers.

    Args:
      layers: the layers from :func:`layers`.
      batch_norm: whether BatchNorms that were left out are refused, too.
    """
    uncounted = {name for layer in layers for name in layer.uncounted}
    if uncounted:
        raise ValueError(
            f"layers are of a network that also multiplies by or applies "
            f"{sorted(uncounted)}; it may have no factors but those of its layers."
        )
    ignored = {name for layer in layers for name in layer.ignored}
    if batch_norm and ignored:
        raise ValueError(
            f"layers leave out the BatchNorms {sorted(ignored)}; they must be found "
            "with batch_norm 'fold' or 'separate'."
        )


def layer_map(layer: Layer) -> linalg.LinearMap:
    """Returns a layer as a linear map on one example, ``(1, *input_shape)``.

    Args:
      layer: a layer from :func:`layers`.

    Returns:
      A map with a batch of one, in the dtype of the kernel.
    """
    if layer.kind == "convolution":
        found = linalg.convolution_map(layer.kernel, layer.input_shape, **layer.options)
        if not layer.transposed:
            return found
        return found._replace(
            matvec=found.rmatvec,
            rmatvec=found.matvec,
            in_shape=found.out_shape,
            out_shape=found.in_shape,
        )
    matrix = jnp.diag(layer.kernel) if layer.has_factors else layer.kernel
    return linalg.LinearMap(
        lambda v: jnp.einsum("...i,io->...o", v, matrix, precision="highest"),
        lambda u: jnp.einsum("...o,io->...i", u, matrix, precision="highest"),
        1,
        layer.input_shape,
        (*layer.input_shape[:-1], matrix.shape[1]),
        matrix.dtype,
    )


def layer_norms(
    layers: Sequence[Layer],
    *,
    num_steps: int = 20,
    method: str = "svd",
    num_iterations: int = 6,
) -> LayerNorms:
    """Computes the spectral norm of each layer as a map, with bounds on both sides.

    Args:
      layers: L layers from :func:`layers`.
      num_steps: Golub-Kahan steps of a convolution
        (:func:`opnorm.linalg.convolution_norm`); dense layers are decomposed.
      method: method of the upper bound of a convolution
        (:func:`opnorm.linalg.convolution_upper_bound`).
      num_iterations: iterations of the method "gram_iteration".

    Returns:
      Norms, error bars and bounds, ``(L,)`` each.

    Raises:
      ValueError: as :func:`opnorm.linalg.convolution_norm_bounds`.
    """
    rows = []
    for layer in layers:
        matrix = kernel_values(layer)[0]
        if layer.kind == "convolution":
            found = linalg.convolution_norm_bounds(
                layer.kernel,
                layer.input_shape,
                num_steps=num_steps,
                method=method,
                num_iterations=num_iterations,
                **layer.options,
            )
            rows.append((found.value, found.residual, found.lower, found.upper, matrix))
        else:
            margin = _dense_margin(layer)
            bounds = matrix * (1 - margin), matrix * (1 + margin)
            rows.append((matrix, jnp.zeros_like(matrix), *bounds, matrix))
    return LayerNorms(*map(stack, zip(*rows, strict=True)))


def layer_singular_values(layer: Layer, *, form: str = "operator") -> jax.Array:
    """Computes all distinct singular values of a layer.

    Args:
      layer: a layer from :func:`layers`.
      form: "kernel" for the kernel matrix ``C_out x (taps C_in)``. "operator" for the
        periodic version of a convolution on the size of the image, rounded up to a
        multiple of the strides (Sedghi et al. 2019). Other layers have one form.

    Returns:
      ``(k,)``, largest first, at least float32. The singular values of a dense layer
      that acts at many places are listed once.

    Raises:
      ValueError: for an unknown form.
    """
    check_form(form)
    # Layers of one shape share a program, whatever their names are.
    nameless = dataclasses.replace(
        layer, name="", batch_norm=None, uncounted=(), ignored=(), path="", graph=()
    )
    return _singular_values(nameless, form)


@linalg.jit(static_argnums=1)
def _singular_values(layer: Layer, form: str) -> jax.Array:
    if form == "kernel" or layer.kind != "convolution":
        return kernel_values(layer)
    sizes = [
        -(-size // stride) * stride
        for size, stride in zip(layer.input_shape, layer.strides, strict=False)
    ]
    return linalg.circular_singular_values(
        layer.kernel,
        sizes,
        strides=layer.strides,
        kernel_dilation=layer.kernel_dilation,
        groups=layer.groups,
    )


def singular_value_std(layers: Sequence[Layer], *, form: str = "operator") -> jax.Array:
    """Computes the standard deviation of each layer's singular values.

    The paper does not state the form; its context suggests "operator".

    Args:
      layers: L layers from :func:`layers`; with ``batch_norm="ignore"`` for the
        quantity of the paper.
      form: as in :func:`layer_singular_values`.

    Returns:
      ``(L,)``, the standard deviation of the population.

    Raises:
      ValueError: for an unknown form.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Figs. 1 and 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> layer = operators.Layer(jnp.diag(jnp.array([5.0, 1.0])), "a", "dense", (2,))
      >>> print(operators.singular_value_std([layer]).round(3))
      [2.]
    """
    values = [layer_singular_values(layer, form=form) for layer in layers]
    return stack([_std(v) for v in values])


@linalg.jit()
def _std(values: jax.Array) -> jax.Array:
    """The standard deviation of the population, for values of any size.

    Its gradient is 0 where all values are equal.
    """
    away = (values - jnp.mean(values))[None]
    return linalg.norm(away, 2.0)[0] / math.sqrt(values.size)


def log_lipschitz_bound(
    layers: Sequence[Layer],
    *,
    input_scale: float | Sequence[float] = 1.0,
    method: str = "svd",
    num_iterations: int = 6,
) -> jax.Array:
    """Computes the log of an upper bound of the L2 Lipschitz constant of a network.

    Networks with other factors, or with LayerNorm and similar layers, are refused.

    For layers from :func:`find_layers` the bound is valid for any network that is not
    refused: sums and concatenations of branches, constant factors, pooling with overlap
    and the slopes of activations count.

    For layers from :func:`layers` the log of the bound is the sum of the logs of upper
    bounds of the norms of the layers, rounding included. It is then valid for a chain
    of these layers with 1-Lipschitz functions between them: ReLU, max- or
    average-pooling without overlap, flattening. It is **not valid for residual
    networks** or other branches, nor for overlapping max-pooling (3x3 windows with
    stride 2 have constant 2). Constant factors are not seen, except ``input_scale``.

    Args:
      layers: all layers of the network, from :func:`find_layers` or :func:`layers` with
        ``batch_norm`` "fold" (tighter) or "separate".
      input_scale: a factor before the network. For layers of :func:`layers` it is the
        factor ``1 / std`` of the pixels at the input of the network, one number or one
        per channel (2 for the models of this library with the default std of 0.5);
        :func:`find_layers` has counted that factor. The bound is then in [0, 1] pixel
        units.
      method: as in :func:`opnorm.linalg.convolution_upper_bound`.
      num_iterations: as in :func:`opnorm.linalg.convolution_upper_bound`.

    Returns:
      A scalar.

    Raises:
      ValueError: for a network with factors that are in no kernel, BatchNorms that were
        left out, some of the layers of :func:`find_layers` only, and as
        :func:`opnorm.linalg.convolution_upper_bound`.

    Example:
      The bound is the product of the norms, 4 and 3.

      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> module = nn.Sequential([nn.Dense(2, use_bias=False), nn.relu, nn.Dense(2)])
      >>> first = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
      >>> second = {"kernel": jnp.diag(jnp.array([2.0, 3.0])), "bias": jnp.zeros(2)}
      >>> variables = {"params": {"layers_0": first, "layers_2": second}}
      >>> layers = operators.layers(module, variables, jnp.zeros((1, 2)))
      >>> print(f"{jnp.exp(operators.log_lipschitz_bound(layers)):.2f}")
      12.00
    """
    check_counted(layers, batch_norm=True)
    graph = layers[0].graph if layers else ()
    if graph and num_layers(graph) != len(layers):
        raise ValueError(
            f"layers has {len(layers)} layers; the network has {num_layers(graph)}, "
            "and all are needed."
        )
    bounds = stack([_upper_bound(layer, method, num_iterations) for layer in layers])
    largest = jnp.max(jnp.abs(jnp.asarray(input_scale, bounds.dtype)))
    if graph:
        return log_bound(graph, bounds) + jnp.log(largest)
    logs = jnp.append(jnp.log(bounds), jnp.log(largest))
    # Rounding of the logs and of their sum. The log of a zero layer, -inf, has none.
    size = jnp.sum(jnp.where(jnp.isneginf(logs), 0.0, jnp.abs(logs)))
    return jnp.sum(logs) + linalg.machine_epsilon(logs.dtype) * len(logs) * size


def _upper_bound(layer: Layer, method: str, num_iterations: int) -> jax.Array:
    if layer.kind != "convolution":
        return kernel_values(layer)[0] * (1 + _dense_margin(layer))
    return linalg.convolution_upper_bound(
        layer.kernel,
        layer.input_shape,
        method=method,
        num_iterations=num_iterations,
        **layer.options,
    )


def kernel_values(layer: Layer) -> jax.Array:
    """Returns the singular values of the kernel matrix of a layer, largest first."""
    if not layer.has_factors:
        return linalg.kernel_matrix_singular_values(layer.kernel)
    wide = at_least_single(layer.kernel.dtype)
    return jnp.sort(jnp.abs(layer.kernel.astype(wide)), descending=True)


def _dense_margin(layer: Layer) -> float:
    """The relative rounding error of a decomposition."""
    wide = at_least_single(layer.kernel.dtype)
    return linalg.machine_epsilon(wide) * (2 * sum(layer.kernel.shape) + 20)


def check_form(form: str) -> None:
    """Raises ValueError for an unknown form of matrices."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it may be {', '.join(FORMS)}.")


def stack(scalars: Sequence[jax.Array]) -> jax.Array:
    """Returns one scalar per layer as an array; raises ValueError without a layer."""
    if not scalars:
        raise ValueError("layers is empty; it must have at least one layer.")
    return jnp.stack(scalars)


def _layer(call: Call) -> Layer:
    return Layer(call.kernel(), call.name, call.kind, call.input_shape, **call.options)
