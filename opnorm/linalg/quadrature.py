"""Spectral densities and traces of symmetric maps, from random probes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm.linalg import checks, loops, norms
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.lanczos import check_steps, lanczos, tridiagonal_eigh
from opnorm.linalg.linear_map import LinearMap


class Estimate(NamedTuple):
    """A mean over random probes.

    Attributes:
      mean: ``(B,)``.
      standard_error: ``(B,)``, the standard error of the mean; NaN for one probe.
    """

    mean: jax.Array
    standard_error: jax.Array


class SpectralDensity(NamedTuple):
    """The distribution of the n eigenvalues of each map, seen by P probes.

    The distribution that a probe sees is a weighted sum of m points.

    Attributes:
      nodes: ``(B, P, m)``, Ritz values, ascending. An increasing function of the nodes
        gives the distribution of that function of the eigenvalues.
      weights: ``(B, P, m)``, at least 0; their sum is 1 for each probe.
    """

    nodes: jax.Array
    weights: jax.Array

    def at(self, grid: jax.Array, width: float | jax.Array) -> Estimate:
        """Evaluates the density, with each eigenvalue blurred to a Gaussian.

        The error has two parts. The first is the standard error over the probes. The
        second is a bound of the error of the quadrature: the weight of the spectrum
        that a probe sees may lie anywhere between the neighbouring nodes (inequalities
        of Chebyshev, Markov and Stieltjes). The second part is large where ``width`` is
        less than the distance between nodes, and smaller with a greater width or more
        steps. It may be many times the true error where the width is several distances.

        Args:
          grid: ``(G,)``, the points at which the density is evaluated.
          width: standard deviation of the Gaussians, in units of the nodes.

        Returns:
          ``(B, G)`` means, which integrate to 1, and as ``standard_error`` the sum of
          both parts.

        Raises:
          ValueError: for a width that is not positive.

        Source: Akhiezer 1965, The Classical Moment Problem, for the inequalities.
        """
        norms.check_length("width", width, positive=True)
        away = (grid[None, None, :, None] - self.nodes[..., None, :]) / width
        mean, error, doubt = _blur(away, self.weights)
        # Until here all values are in units of the peak of each bell.
        peak = 1 / (width * math.sqrt(2 * math.pi))
        return Estimate(peak * mean, peak * (error + doubt))

    def moment(self, power: int) -> Estimate:
        """Estimates the mean of the eigenvalues' powers, ``tr(A^power) / n``.

        The estimate is exact for each probe if ``power < 2 m``. For greater powers it
        is an approximation, whose error is not a part of the standard error.

        Args:
          power: an int, at least 0.

        Returns:
          ``(B,)`` means and standard errors over the probes.

        Raises:
          ValueError: for a power that is not an int or is negative.
        """
        power = checks.check_count("power", power, 0)
        return _average(jnp.sum(self.weights * self.nodes**power, axis=-1))


def spectral_density(
    linear_map: LinearMap,
    *,
    num_steps: int = 30,
    num_probes: int = 10,
    key: jax.Array,
    reorthogonalize: bool = False,
) -> SpectralDensity:
    """Estimates the eigenvalue density by stochastic Lanczos quadrature.

    Each probe is a random vector of signs z, normalised, and gives a Lanczos matrix T.
    The nodes are the eigenvalues of T, and the weights are the squared first entries of
    the eigenvectors of T. They are the Gauss quadrature of the spectrum that z sees.
    Copies of an eigenvalue that appear without orthogonalisation share its weight.

    All probes see the same spectrum of a diagonal map, since each eigenvalue has the
    weight 1 / n for every vector of signs. The standard error over the probes is then
    0. The error of :meth:`SpectralDensity.at` also contains the error of the
    quadrature.

    The cost is ``num_probes * num_steps`` products with the map.

    Args:
      linear_map: B symmetric maps.
      num_steps: m, from 1 to n.
      num_probes: P, at least 1; error bars need 2 or more.
      key: typed key of the probes.
      reorthogonalize: whether m vectors are held instead of three, for sharper nodes.

    Returns:
      Nodes and weights of every probe.

    Raises:
      ValueError: for options out of range, a key that is not typed, and as
        :func:`lanczos`.

    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017.

    Example:
      Means of powers of the eigenvalues 1, 2, 3 and 6:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import linalg
      >>> A = linalg.from_matrix(jnp.diag(jnp.array([1.0, 2.0, 3.0, 6.0])))
      >>> density = linalg.spectral_density(
      ...     A, num_steps=4, num_probes=2, key=jax.random.key(0)
      ... )
      >>> print(*(np.asarray(density.moment(k).mean).round(3) for k in (1, 2)))
      [3.] [12.5]
    """
    num_probes = checks.check_count("num_probes", num_probes, 1)
    num_steps = checks.check_count("num_steps", num_steps, 1)
    checks.check_key(key)
    keys = jax.random.split(key, num_probes)
    batch = linear_map.batch_size
    check_steps(linear_map, num_steps)
    wide = at_least_single(linear_map.dtype)

    def probe(
        number: jax.Array, found: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        nodes, weights = found
        process = lanczos(
            linear_map,
            num_steps,
            init=_signs(linear_map, keys[number]),
            key=keys[number],
            reorthogonalize=reorthogonalize,
        )
        values, vectors = tridiagonal_eigh(process.diagonal, process.off_diagonal)
        weight = vectors[:, 0] ** 2
        return nodes.at[:, number].set(values), weights.at[:, number].set(weight)

    empty = linear_map.spread(jnp.zeros((batch, num_probes, num_steps), wide))
    return SpectralDensity(*loops.fori_loop(num_probes, probe, (empty, empty)))


def trace(linear_map: LinearMap, *, num_probes: int = 10, key: jax.Array) -> Estimate:
    """Estimates the trace of each square map as the mean of ``<z, A z>``.

    Args:
      linear_map: B square maps.
      num_probes: number of vectors z of random signs, one product each.
      key: typed key.

    Returns:
      ``(B,)`` unbiased estimates, exact for diagonal maps.

    Raises:
      ValueError: for maps that are not square, num_probes below 1, or a key that is
        not typed.

    Source: Hutchinson 1989.
    """
    if linear_map.in_shape != linear_map.out_shape:
        raise ValueError(
            f"linear_map goes from {linear_map.in_shape} to {linear_map.out_shape}; "
            "only square maps have a trace."
        )
    return _probe(linear_map, norms.inner, num_probes, key)


def squared_frobenius_norm(
    linear_map: LinearMap, *, num_probes: int = 10, key: jax.Array
) -> Estimate:
    """Estimates ``||A||_F^2``, the sum of the squared singular values of each map.

    The estimate is the mean of ``||A z||^2``, or of ``||A^T z||^2`` if A has fewer
    outputs than inputs.

    Args:
      linear_map: B maps.
      num_probes: number of vectors z of random signs, one product each.
      key: typed key.

    Returns:
      ``(B,)`` unbiased estimates.

    Raises:
      ValueError: for num_probes below 1, or a key that is not typed.

    Source: Hutchinson 1989.
    """
    tall = linear_map.in_size <= linear_map.out_size
    short_side = linear_map if tall else linear_map.T
    return _probe(
        short_side, lambda _, image: norms.inner(image, image), num_probes, key
    )


def _probe(
    linear_map: LinearMap,
    measure: Callable[[jax.Array, jax.Array], jax.Array],
    num_probes: int,
    key: jax.Array,
) -> Estimate:
    num_probes = checks.check_count("num_probes", num_probes, 1)
    checks.check_key(key)
    keys = jax.random.split(key, num_probes)

    def probe(number: jax.Array, found: jax.Array) -> jax.Array:
        signs = _signs(linear_map, keys[number])
        image = linear_map.matvec(signs.astype(linear_map.dtype))
        return found.at[:, number].set(measure(signs, image.astype(found.dtype)))

    wide = at_least_single(linear_map.dtype)
    empty = jnp.zeros((linear_map.batch_size, num_probes), wide)
    return _average(loops.fori_loop(num_probes, probe, linear_map.spread(empty)))


def _signs(linear_map: LinearMap, key: jax.Array) -> jax.Array:
    wide = at_least_single(linear_map.dtype)
    shape = (linear_map.batch_size, *linear_map.in_shape)
    return jax.random.rademacher(key, shape, wide)


@jax.jit
def _blur(
    away: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of bells of height 1, their standard errors, and bounds of their errors.

    Args:
      away: ``(B, P, G, m)``, the grid minus each node, in widths.
      weights: ``(B, P, m)``.
    """
    bells = jnp.exp(-0.5 * away**2)
    mean, error = _average(
        jnp.einsum("bpgm,bpm->bpg", bells, weights, precision="highest")
    )
    # In each of the m + 1 intervals between nodes, the distribution function is at most
    # that of the nodes plus the weight on the right, and at least that of the nodes
    # minus the weight on the left. The error is the integral of this difference times
    # the slope of the bell.
    one = ((0, 0),) * 3
    low = jnp.pad(bells, (*one, (1, 0)))
    high = jnp.pad(bells, (*one, (0, 1)))
    above = jnp.pad(away, (*one, (1, 0)), constant_values=jnp.inf) > 0
    below = jnp.pad(away, (*one, (0, 1)), constant_values=-jnp.inf) < 0
    rise = jnp.where(above, jnp.where(below, 1.0, high) - low, 0.0)
    fall = jnp.where(below, jnp.where(above, 1.0, low) - high, 0.0)
    left = jnp.pad(weights, ((0, 0), (0, 0), (1, 0)))[:, :, None]
    right = jnp.pad(weights, ((0, 0), (0, 0), (0, 1)))[:, :, None]
    more = jnp.mean(jnp.sum(rise * left + fall * right, axis=-1), axis=1)
    less = jnp.mean(jnp.sum(rise * right + fall * left, axis=-1), axis=1)
    # A density is not negative.
    return mean, error, jnp.maximum(more, jnp.minimum(less, mean))


def _average(samples: jax.Array) -> Estimate:
    """Means and standard errors over axis 1, the axis of the probes."""
    count = samples.shape[1]
    mean = jnp.mean(samples, axis=1)
    if count == 1:
        return Estimate(mean, jnp.full_like(mean, jnp.nan))
    # The norm scales its argument, so that no square overflows or vanishes.
    away = jnp.moveaxis(samples - mean[:, None], 1, -1).reshape(mean.size, count)
    spread = norms.norm(away, 2.0).reshape(mean.shape)
    return Estimate(mean, spread / math.sqrt(count * (count - 1)))
