"""linalg: spectral densities and traces of symmetric maps, from random probes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opnorm.linalg import checks, loops, norms
from opnorm.linalg.lanczos import check_steps, lanczos, tridiagonal_eigh
from opnorm.linalg.linear_map import LinearMap


class Estimate(NamedTuple):
    """A mean over random probes.

    Attributes:
      mean: ``(B,)``.
      standard_error: ``(B,)``, of the mean; NaN for a single probe.
    """

    mean: jax.Array
    standard_error: jax.Array


class SpectralDensity(NamedTuple):
    """The distribution of the n eigenvalues of each map, as one sum of points a probe.

    Attributes:
      nodes: ``(B, P, m)``, Ritz values.
      weights: ``(B, P, m)``, at least 0, of sum 1 for each probe.
    """

    nodes: jax.Array
    weights: jax.Array

    def at(self, grid: jax.Array, width: float | jax.Array) -> Estimate:
        """Evaluates the density, each eigenvalue blurred to a Gaussian.

        Args:
          grid: ``(G,)``, where.
          width: standard deviation of the Gaussians, in units of the eigenvalues.

        Returns:
          ``(B, G)`` means and standard errors over the probes; the mean integrates
          to 1.

        Raises:
          ValueError: for a width that is not positive.
        """
        norms.check_length("width", width, positive=True)
        away = (grid[:, None] - self.nodes[..., None, :]) / width
        bells = jnp.exp(-0.5 * away**2) / (width * jnp.sqrt(2 * jnp.pi))
        return _average(jnp.einsum("bpgm,bpm->bpg", bells, self.weights))

    def moment(self, power: int) -> Estimate:
        """Estimates the mean of the eigenvalues' powers, ``tr(A^power) / n``.

        Exact for each probe while ``power < 2 m``.

        Args:
          power: a whole number, at least 0.

        Returns:
          ``(B,)`` means and standard errors over the probes.
        """
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

    Each probe is a random vector of signs z, normalised. The nodes of its Lanczos
    matrix T are the eigenvalues of T, their weights the squared first entries of T's
    eigenvectors: Gauss quadrature of the spectrum as z sees it. Eigenvalues that are
    found twice without orthogonalisation share their weight.

    Costs ``num_probes * num_steps`` products with the map.

    Args:
      linear_map: B symmetric maps.
      num_steps: m, from 1 to n.
      num_probes: P, at least 1; 2 for error bars.
      key: typed key of the probes.
      reorthogonalize: holds m vectors instead of three, for sharper nodes.

    Returns:
      Nodes and weights of every probe.

    Raises:
      ValueError: for options out of range, a key that is not typed, and as
        :func:`lanczos`.

    Source: Golub & Welsch 1969; Ubaru, Chen & Saad 2017.
    """
    num_probes = checks.check_count("num_probes", num_probes, 1)
    num_steps = checks.check_count("num_steps", num_steps, 1)
    checks.check_key(key)
    keys = jax.random.split(key, num_probes)
    batch = linear_map.batch_size
    check_steps(linear_map, num_steps)
    wide = jnp.promote_types(linear_map.dtype, jnp.float32)

    def probe(number: jax.Array, found: Any) -> Any:
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
      num_probes: vectors z of random signs, one product each.
      key: typed key.

    Returns:
      ``(B,)`` estimates without bias; exact for diagonal maps.

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

    It is the mean of ``||A z||^2``, or of ``||A^T z||^2`` if there are fewer outputs.

    Args:
      linear_map: B maps.
      num_probes: vectors z of random signs, one product each.
      key: typed key.

    Returns:
      ``(B,)`` estimates without bias.

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

    wide = jnp.promote_types(linear_map.dtype, jnp.float32)
    empty = jnp.zeros((linear_map.batch_size, num_probes), wide)
    return _average(loops.fori_loop(num_probes, probe, linear_map.spread(empty)))


def _signs(linear_map: LinearMap, key: jax.Array) -> jax.Array:
    wide = jnp.promote_types(linear_map.dtype, jnp.float32)
    shape = (linear_map.batch_size, *linear_map.in_shape)
    return jax.random.rademacher(key, shape, wide)


def _average(samples: jax.Array) -> Estimate:
    """Means over axis 1, that of the probes."""
    count = samples.shape[1]
    mean = jnp.mean(samples, axis=1)
    spread = jnp.sum((samples - mean[:, None]) ** 2, axis=1)
    variance = (
        spread / (count - 1) / count if count > 1 else jnp.full_like(mean, jnp.nan)
    )
    return Estimate(mean, jnp.sqrt(variance))
