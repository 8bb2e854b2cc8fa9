"""Spectra of the Hessian of the mean cross-entropy in the parameters.

The whole data set has one such matrix, with a few large eigenvalues and many near zero;
random probes estimate how all of them are distributed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg, operators
from opnorm.analysis import inputs
from opnorm.analysis.averages import Average, average
from opnorm.analysis.batches import reporting_progress
from opnorm.analysis.inputs import check_examples, check_labels
from opnorm.analysis.precision import exact_program
from opnorm.attacks import losses
from opnorm.linalg import PyTree
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.lanczos import tridiagonal_eigh
from opnorm.operators.network_parameters import (
    choose_parameters,
    put_parameters,
    take_parameters,
)

PARAMETER_MATRICES = ("hessian", "gauss_newton")

# Arrays (S, b, ...) of all batches, or (b, ...) of one: "image", "label", "weight".
_Shards = dict[str, Any]


class Eigenvalue(NamedTuple):
    """A number and its error: the matrix has an eigenvalue within ``error`` of it."""

    value: float
    error: float


class ParameterSpectrum(NamedTuple):
    """The spectrum of a symmetric matrix of the parameters.

    Attributes:
      size: n, number of parameters.
      largest: the largest eigenvalue that the Krylov spaces reach, which does not
        exceed the largest of all.
      smallest: the smallest one that they reach; the matrix may have a smaller one.
      trace: estimate of the sum of the eigenvalues, the average over the probes.
      density: density of the eigenvalues, a batch of one.
    """

    size: int
    largest: Eigenvalue
    smallest: Eigenvalue
    trace: Average
    density: linalg.SpectralDensity


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
    ``num_probes * num_steps`` products with the Hessian, each of which needs some
    passes over all examples, and holds ``num_steps`` vectors of all parameters.

    The parameters are floating point arrays among the leaves of ``f``; the other leaves
    are constant. ``parameters`` chooses them. If it is None, they are

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
      matrix: "hessian", or "gauss_newton" for its positive semidefinite term, which for
        the cross-entropy is also the Fisher matrix.
      parameters: ``path -> bool``, true for the arrays that are parameters, such as
        ``lambda path: path.endswith("kernel")``. The path of a leaf is written by
        ``jax.tree_util.keystr(..., simple=True, separator="/")``, such as
        "variables/params/Dense_0/kernel". None for the arrays above.
      num_steps: m, steps of each process, from 1 to the number of parameters.
      num_probes: P, at least 1; 2 or more give standard errors.
      batch_size: examples per pass through the network.
      key: typed key of the probes.
      on_progress: called with the fraction of the probes that is done, in [0, 1].

    Raises:
      ValueError: for no examples, labels that do not fit, an option out of range, a
        plain function, whose parameters are not known, or no parameter.

    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019
    for networks.
    """
    check_examples(images, labels, batch_size)
    if matrix not in PARAMETER_MATRICES:
        raise ValueError(
            f"matrix is {matrix!r}; it may be {', '.join(PARAMETER_MATRICES)}."
        )
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}; it must be at least 1.")
    network = linalg.prepare_network(f)
    chosen = choose_parameters(f, parameters)
    n = sum(leaf.size for leaf in take_parameters(f, chosen))
    if not 1 <= num_steps <= n:
        raise ValueError(f"num_steps is {num_steps}; it must be from 1 to {n}.")
    shards = _shards(images, labels, batch_size)
    check_labels(network, images, labels, shards["label"].shape[1])
    shards = jax.device_put(shards)
    measure = functools.partial(
        _process, chosen=chosen, matrix=matrix, num_steps=num_steps
    )
    process = reporting_progress(measure, num_probes, 1, on_progress)
    keys = jax.random.split(key, num_probes)
    probes = [process(network, shards, probe) for probe in keys]
    nodes, weights, largest, smallest = (
        np.concatenate(parts, axis=1) for parts in zip(*probes, strict=True)
    )
    # NumPy arrays keep float64, which JAX does not by default.
    density = linalg.SpectralDensity(nodes, weights)  # type: ignore[arg-type]
    # The spectrum reaches the values of all processes, so the outermost one counts.
    top, bottom = largest[0, :, 0].argmax(), smallest[0, :, 0].argmin()
    return ParameterSpectrum(
        n,
        Eigenvalue(*largest[0, top].tolist()),
        Eigenvalue(*smallest[0, bottom].tolist()),
        # The average of <z, A z> over the probes z.
        average(n * np.sum(nodes * weights, axis=2)[0]),
        density,
    )


@exact_program
def _process(
    f: linalg.Network,
    shards: _Shards,
    key: jax.Array,
    *,
    chosen: tuple[int, ...],
    matrix: str,
    num_steps: int,
) -> tuple[jax.Array, ...]:
    """Returns nodes and weights ``(1, 1, m)``, both ends with errors ``(1, 1, 2)``."""

    def logits(params: PyTree, shard: _Shards) -> jax.Array:
        network: linalg.BatchFunction = put_parameters(f, chosen, params)
        return network(inputs.to_pixels(shard["image"]))

    def mean_loss(logits: jax.Array, shard: _Shards) -> jax.Array:
        each = losses.cross_entropy(logits, shard["label"])
        return jnp.mean(shard["weight"].astype(each.dtype) * each)

    params = take_parameters(f, chosen)
    if matrix == "hessian":
        found = operators.parameter_hessian(
            lambda params, shard: mean_loss(logits(params, shard), shard),
            params,
            shards,
        )
    else:
        found = operators.gauss_newton(logits, mean_loss, params, shards)
    wide = at_least_single(found.map.dtype)
    signs = jax.random.rademacher(key, (1, *found.map.in_shape), wide)
    krylov = linalg.lanczos(found.map, num_steps, init=signs, key=key)
    nodes, vectors = tridiagonal_eigh(krylov.diagonal, krylov.off_diagonal)
    ends = [linalg.ritz_pairs(krylov, which=end) for end in ("largest", "smallest")]
    return (
        nodes[:, None],
        vectors[:, None, 0] ** 2,
        *(jnp.stack([end.values, end.residual], axis=2) for end in ends),
    )


def _shards(images: np.ndarray, labels: np.ndarray, batch_size: int) -> _Shards:
    """Returns batches ``(S, b, ...)``; copies that fill up the last have weight 0."""
    count = len(images)
    number = math.ceil(count / min(batch_size, count))
    size = math.ceil(count / number)
    places = np.arange(number * size)
    rows = np.minimum(places, count - 1)
    weight = (places < count) * (len(places) / count)
    arrays = {"image": images[rows], "label": labels[rows], "weight": weight}
    return {k: a.reshape(number, size, *a.shape[1:]) for k, a in arrays.items()}
