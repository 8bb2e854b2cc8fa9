"""Curvature of the cross-entropy, in the inputs and in the parameters.

In the inputs every example has a Hessian of its own, which for a piecewise linear
network is of rank below the number of classes; in the parameters the whole data set has
one, with a few large eigenvalues and a bulk near zero, of which random probes see the
distribution.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opnorm import linalg, operators
from opnorm.analysis import accuracy, inputs
from opnorm.analysis.averages import Average, average
from opnorm.analysis.feature_spectrum import reporting_progress
from opnorm.analysis.inputs import check_examples, check_labels
from opnorm.attacks import losses
from opnorm.linalg.lanczos import tridiagonal_eigh

MATRICES = ("hessian", "gauss_newton")


class InputCurvature(NamedTuple):
    """First and second derivatives in the input, by example; lengths in pixel units.

    Attributes:
      largest: ``(N,)``, the largest eigenvalue of the Hessian of the cross-entropy.
        Where ``curved``, the largest one that the Krylov space reaches: it does not
        exceed the largest of all by more than ``error``.
      trace: ``(N,)``, the sum of the eigenvalues; where ``curved``, an estimate.
      gradient_norm: ``(N,)``, ``||gradient of the cross-entropy||_2``.
      sigma: ``(N,)``, the largest singular value of the Jacobian of the logits.
      smallest: ``(N,)``, the smallest eigenvalue; where ``curved``, the smallest one
        that the Krylov space reaches.
      error: ``(N,)``, how far an eigenvalue may lie from ``largest`` and one from
        ``smallest``.
      trace_error: ``(N,)``, the standard error of ``trace`` over the random probes: 0
        where the trace is exact, NaN for a single probe.
      curved: ``(N,)`` bool, whether the network is not piecewise linear at the example.
    """

    largest: np.ndarray
    trace: np.ndarray
    gradient_norm: np.ndarray
    sigma: np.ndarray
    smallest: np.ndarray
    error: np.ndarray
    trace_error: np.ndarray
    curved: np.ndarray


class Eigenvalue(NamedTuple):
    """A number that an eigenvalue lies within ``error`` of."""

    value: float
    error: float


class ParameterSpectrum(NamedTuple):
    """The spectrum of a symmetric matrix of the parameters.

    Attributes:
      size: n, how many parameters there are.
      largest: the largest eigenvalue that the Krylov spaces reach. It does not exceed
        the largest of all.
      smallest: the smallest one; the matrix may have a smaller one.
      trace: estimate of the sum of the eigenvalues, the average over the probes.
      density: of the eigenvalues, a batch of one.
    """

    size: int
    largest: Eigenvalue
    smallest: Eigenvalue
    trace: Average
    density: linalg.SpectralDensity


def input_curvature(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_steps: int = 30,
    num_probes: int = 10,
    batch_size: int = 100,
    key: jax.Array | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> InputCurvature:
    """Computes how steep and how bent the cross-entropy is at each example.

    Where the network is piecewise linear the Hessian is ``J^T (diag p - p p^T) J``, and
    the dense Jacobian gives all of it: one backward pass for each logit. Whether it is,
    is measured for each batch, see :func:`opnorm.operators.is_curved`. A network with
    smooth nonlinearities has another part beside that one: its eigenvalues are found by
    the Lanczos process on Hessian-vector products, and the trace of the other part by
    random probes, in ``num_steps + num_probes`` products.

    Args:
      f: ``(B, ...) -> (B, d)`` logits, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int.
      num_steps: of each Lanczos process, at least 1; as many as pixels are exact. Only
        networks that are not piecewise linear need it.
      num_probes: of each trace, at least 1; 2 or more for error bars, as many as pixels
        for the exact trace. Only networks that are not piecewise linear need it.
      batch_size: examples per compiled call.
      key: typed key of random starts and probes; None for ``jax.random.key(0)``.
      on_progress: called with the part of the examples that is behind, in [0, 1].

    Raises:
      ValueError: for no examples, or labels, a number of steps or probes, a batch size
        or a key that do not fit.

    Source: Finlay & Oberman 2019, Table 3 (there of another loss); Schraudolph 2002 for
    the parts of the Hessian; Hutchinson 1989 for the trace.
    """
    num_steps = linalg.check_count("num_steps", num_steps, 1)
    num_probes = linalg.check_count("num_probes", num_probes, 1)
    key = jax.random.key(0) if key is None else key
    linalg.check_key(key)
    check_examples(images, labels, batch_size)
    size = min(batch_size, len(images))
    f = linalg.prepare_network(f)
    check_labels(f, images, labels, size)
    options = {"num_steps": num_steps, "num_probes": num_probes}

    def measured(
        f: linalg.Network,
        x: jax.Array,
        labels: jax.Array,
        number: Any,
        key: jax.Array,
    ) -> InputCurvature:
        # No two batches may share probes: their errors would not average out.
        key = jax.random.fold_in(key, number[0])
        found, pairs = _curvature(f, x, labels, key)
        if not np.any(found.curved):
            return found
        # Compiled for networks that need it alone.
        return _whole_curvature(f, x, labels, key, found, pairs, **options)

    return accuracy.in_batches(
        reporting_progress(measured, len(images), size, on_progress),
        f,
        (images, labels, np.arange(len(images))),
        size,
        (key,),
    )


def parameter_spectrum(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    matrix: str = "hessian",
    parameters: Callable[[str], bool] | None = None,
    num_steps: int = 30,
    num_probes: int = 4,
    batch_size: int = 100,
    key: jax.Array,
    on_progress: Callable[[float], None] | None = None,
) -> ParameterSpectrum:
    """Computes the spectrum of the mean cross-entropy's Hessian in the parameters.

    A Lanczos process from each of several random probes gives the density, by
    stochastic Lanczos quadrature, the trace, and both ends of the spectrum. It costs
    ``num_probes * num_steps`` products with the Hessian, each some passes over all
    examples, and holds ``num_steps`` vectors of all parameters.

    The parameters are floating point arrays among the leaves of ``f``; the other leaves
    are constant. ``parameters`` chooses them. Where it is None, they are

    - in an NNX module: its variables of the type ``nnx.Param``;
    - in another pytree that has "params" in the path of a leaf, such as a
      :class:`opnorm.models.Network` or ``jax.tree_util.Partial(module.apply,
      variables)``: all such arrays below "params";
    - in any other pytree, such as ``jax.tree_util.Partial(apply, weights)``: all such
      arrays.

    Args:
      f: ``(B, ...) -> (B, d)`` logits, a callable pytree, see :mod:`opnorm.analysis`;
        in inference mode: on running statistics BatchNorm keeps the rows independent.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int.
      matrix: "hessian", or "gauss_newton" for its positive semidefinite part, which
        for the cross-entropy is the Fisher matrix too.
      parameters: ``path -> bool``, which floating point arrays are parameters, such as
        ``lambda path: path.endswith("kernel")``; the path of a leaf is what
        ``jax.tree_util.keystr(..., simple=True, separator="/")`` writes, such as
        "variables/params/Dense_0/kernel". None for those above.
      num_steps: m, of each process, from 1 to the number of parameters.
      num_probes: P, at least 1; 2 or more for standard errors.
      batch_size: examples that are passed through the network at a time.
      key: typed key of the probes.
      on_progress: called with the part of the probes that is behind, in [0, 1].

    Raises:
      ValueError: for no examples, labels that do not fit, an option out of range, a
        plain function, whose parameters do not show, or no parameter.

    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019
    for networks.
    """
    check_examples(images, labels, batch_size)
    if matrix not in MATRICES:
        raise ValueError(f"matrix is {matrix!r}; it may be {', '.join(MATRICES)}.")
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}; it must be at least 1.")
    network = linalg.prepare_network(f)
    chosen = _choose(f, parameters)
    n = sum(leaf.size for leaf in _split(f, chosen))
    if not 1 <= num_steps <= n:
        raise ValueError(f"num_steps is {num_steps}; it must be from 1 to {n}.")
    shards = _shards(images, labels, batch_size)
    check_labels(network, images, labels, shards["label"].shape[1])
    shards = jax.device_put(shards)
    options: dict[str, Any] = {"matrix": matrix, "num_steps": num_steps}
    measure = functools.partial(_process, chosen=chosen, **options)
    process = reporting_progress(measure, num_probes, 1, on_progress)
    keys = jax.random.split(key, num_probes)
    probes = [process(network, shards, probe) for probe in keys]
    nodes, weights, largest, smallest = (
        np.concatenate(parts, axis=1) for parts in zip(*probes, strict=True)
    )
    # As numpy arrays, which keep float64 where JAX's default would not.
    density = linalg.SpectralDensity(nodes, weights)  # type: ignore[arg-type]
    # Every process finds a value that the spectrum reaches: the outermost one counts.
    top, bottom = largest[0, :, 0].argmax(), smallest[0, :, 0].argmin()
    return ParameterSpectrum(
        n,
        Eigenvalue(*largest[0, top].tolist()),
        Eigenvalue(*smallest[0, bottom].tolist()),
        # <z, A z> of each probe z.
        average(n * np.sum(nodes * weights, axis=2)[0]),
        density,
    )


@linalg.network_program
def _curvature(
    f: linalg.Network, x: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[InputCurvature, linalg.Eigenpairs]:
    """All that is asked for if the network is piecewise linear, and whether it is."""
    pixels = inputs.to_pixels(x)
    logits, rows = f(pixels), operators.dense_jacobian(f, pixels)

    # All of this depends on values and slopes at x only, and so needs no second way
    # through the network.
    def linearized(z: jax.Array) -> jax.Array:
        moved = (z - pixels).reshape(len(z), -1)
        flat = rows.reshape(*rows.shape[:2], -1)
        return logits + jnp.einsum("bdn,bn->bd", flat, moved, precision="highest")

    pairs = operators.cross_entropy_gauss_newton(linearized, pixels)

    def total(z: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(linearized(z), labels))

    gradient = jax.grad(total)(pixels)
    top = operators.singular_triplets(linearized, pixels, 1, method="dense")
    # The last of d values is zero but for rounding where there are d pixels.
    few = math.prod(pixels.shape[1:]) < logits.shape[1]
    lowest = pairs.values[:, -1]
    # NumPy arrays once they leave the batches.
    found: dict[str, Any] = {
        "largest": pairs.values[:, 0],
        "trace": jnp.sum(pairs.values, axis=1),
        "gradient_norm": linalg.norm(gradient, 2.0),
        "sigma": top.values[:, 0],
        "smallest": lowest if few else jnp.zeros_like(lowest),
        "error": pairs.residual[:, 0],
        "trace_error": jnp.zeros_like(lowest),
        "curved": operators.is_curved(f, pixels, key=key),
    }
    return InputCurvature(**found), pairs


@linalg.network_program
# Rounded products would not be those of a symmetric matrix.
@jax.default_matmul_precision("highest")
def _whole_curvature(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    found: InputCurvature,
    pairs: linalg.Eigenpairs,
    *,
    num_steps: int,
    num_probes: int,
) -> InputCurvature:
    """Puts the whole Hessian in place of its Gauss-Newton part at curved examples."""
    start_key, probe_key = jax.random.split(key)
    pixels = inputs.to_pixels(x)
    hessian = operators.input_hessian_map(
        lambda z: losses.cross_entropy(f(z), labels), pixels
    )
    steps = min(num_steps, hessian.in_size)
    krylov = linalg.lanczos(hessian, steps, key=start_key)
    largest = linalg.ritz_pairs(krylov, which="largest")
    smallest = linalg.ritz_pairs(krylov, which="smallest")

    def product(v: jax.Array) -> jax.Array:
        along = pairs.values * jnp.einsum("bk...,b...->bk", pairs.vectors, v)
        return jnp.einsum("bk,bk...->b...", along, pairs.vectors)

    # Probes of the difference alone: the rest of the trace is known exactly.
    rest = hessian - hessian._replace(matvec=product, rmatvec=product)
    estimate = _trace(rest, num_probes, probe_key)
    bent: dict[str, Any] = {
        "largest": largest.values[:, 0],
        "trace": found.trace + estimate.mean,
        "smallest": smallest.values[:, 0],
        "error": jnp.maximum(largest.residual, smallest.residual)[:, 0],
        "trace_error": estimate.standard_error,
    }
    return jax.tree.map(
        lambda a, b: jnp.where(found.curved, a, b), found._replace(**bent), found
    )


def _trace(
    linear_map: linalg.LinearMap, num_probes: int, key: jax.Array
) -> linalg.Estimate:
    """The trace by random probes, or by all n unit vectors where they are as few."""
    n = linear_map.in_size
    if num_probes < n:
        return linalg.trace(linear_map, num_probes=num_probes, key=key)

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        unit = jax.nn.one_hot(number, n, dtype=linear_map.dtype)
        shape = (linear_map.batch_size, *linear_map.in_shape)
        image = linear_map.matvec(jnp.broadcast_to(unit, (shape[0], n)).reshape(shape))
        return total + image.reshape(shape[0], n)[:, number].astype(total.dtype)

    wide = jnp.promote_types(linear_map.dtype, jnp.float32)
    zero = jnp.zeros(linear_map.batch_size, wide)
    return linalg.Estimate(linalg.fori_loop(n, add, zero), zero)


@linalg.network_program
# Rounded products would not be those of a symmetric matrix.
@jax.default_matmul_precision("highest")
def _process(
    f: linalg.Network,
    shards: Any,
    key: jax.Array,
    *,
    chosen: tuple[int, ...],
    matrix: str,
    num_steps: int,
) -> Any:
    """One probe: nodes, weights ``(1, 1, m)``; both ends with errors ``(1, 1, 2)``."""

    def logits(params: Any, shard: Any) -> jax.Array:
        network = _join(f, chosen, params)
        return network(inputs.to_pixels(shard["image"]))

    def mean_loss(logits: jax.Array, shard: Any) -> jax.Array:
        each = losses.cross_entropy(logits, shard["label"])
        return jnp.mean(shard["weight"].astype(each.dtype) * each)

    params = _split(f, chosen)
    if matrix == "hessian":
        found = operators.parameter_hessian(
            lambda params, shard: mean_loss(logits(params, shard), shard),
            params,
            shards,
        )
    else:
        found = operators.gauss_newton(logits, mean_loss, params, shards)
    wide = jnp.promote_types(found.map.dtype, jnp.float32)
    signs = jax.random.rademacher(key, (1, *found.map.in_shape), wide)
    krylov = linalg.lanczos(found.map, num_steps, init=signs, key=key)
    nodes, vectors = tridiagonal_eigh(krylov.diagonal, krylov.off_diagonal)
    ends = [linalg.ritz_pairs(krylov, which=end) for end in ("largest", "smallest")]
    return (
        nodes[:, None],
        vectors[:, None, 0] ** 2,
        *(jnp.stack([end.values, end.residual], axis=2) for end in ends),
    )


def _choose(
    f: linalg.Network, parameters: Callable[[str], bool] | None
) -> tuple[int, ...]:
    """The positions of the parameters among the leaves of a network."""
    leaves = jax.tree_util.tree_flatten_with_path(f)[0]
    paths = {
        i: jax.tree_util.keystr(path, simple=True, separator="/")
        for i, (path, leaf) in enumerate(leaves)
        if jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jnp.floating)
    }
    if not paths:
        raise ValueError(
            f"f is a {type(f).__name__} that shows no floating point arrays; it must "
            "be a pytree with its parameters as leaves, such as opnorm.network(module, "
            "variables) or jax.tree_util.Partial(apply, variables)."
        )
    if parameters is None:
        return _usual_parameters(f, paths)
    chosen = tuple(i for i, path in paths.items() if parameters(path))
    if not chosen:
        raise ValueError(
            "parameters chooses none of the floating point arrays of f; their paths "
            f"are {', '.join(paths.values())}."
        )
    return chosen


def _usual_parameters(f: linalg.Network, paths: dict[int, str]) -> tuple[int, ...]:
    nodes = jax.tree.leaves(f, is_leaf=lambda node: isinstance(node, nnx.Variable))
    trained = [
        isinstance(node, nnx.Param) for node in nodes for _ in jax.tree.leaves(node)
    ]
    if any(trained):
        return tuple(i for i in paths if trained[i])
    below = tuple(i for i, path in paths.items() if "params" in path.split("/"))
    return below or tuple(paths)


def _split(f: linalg.Network, chosen: Sequence[int]) -> list[jax.Array]:
    leaves = jax.tree.leaves(f)
    return [leaves[i] for i in chosen]


def _join(
    f: linalg.Network, chosen: Sequence[int], params: Sequence[jax.Array]
) -> linalg.Network:
    """The network with other parameters."""
    leaves, treedef = jax.tree.flatten(f)
    for i, leaf in zip(chosen, params, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


def _shards(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Any:
    """Batches of one size, ``(S, b, ...)``; what fills up the last weighs nothing."""
    count = len(images)
    number = math.ceil(count / min(batch_size, count))
    size = math.ceil(count / number)
    places = np.arange(number * size)
    rows = np.minimum(places, count - 1)
    weight = (places < count) * (len(places) / count)
    shards = {"image": images[rows], "label": labels[rows], "weight": weight}
    return jax.tree.map(lambda a: a.reshape(number, size, *a.shape[1:]), shards)
