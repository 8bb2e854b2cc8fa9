"""Eigenvalue densities of several spectra as curves on one grid."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg


class DensityCurve(NamedTuple):
    """A density of ``t = asinh(eigenvalue / scale)``.

    On this axis eigenvalues well below ``scale`` are linear and those above it
    logarithmic, with either sign.

    Attributes:
      scale: the eigenvalue at which the axis passes from linear to logarithmic.
      width: standard deviation of the Gaussian that each eigenvalue is blurred to, in
        units of t.
      asinh: ``(G,)``, the grid of t, rising.
      mean: ``(G,)``, the density; it integrates to 1 over t.
      standard_error: ``(G,)``, see :meth:`opnorm.linalg.SpectralDensity.at`.
    """

    scale: float
    width: float
    asinh: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """``(G,)``, the eigenvalues at the points of the grid."""
        values: np.ndarray = self.scale * np.sinh(self.asinh)
        return values

    def reflected(self) -> "DensityCurve":
        """Returns the density of a matrix that has no negative eigenvalues.

        Each eigenvalue is blurred to a Gaussian, whose part below 0 is reflected at 0:
        the density at ``t >= 0`` is that at t and that at -t together. It integrates to
        1 over ``t >= 0``. Its error is at most the sum of both errors, which it has.

        Returns:
          A curve whose grid begins at 0.
        """
        grid = np.append(0.0, self.asinh[self.asinh > 0])

        def both(values: np.ndarray) -> np.ndarray:
            sides = (np.interp(s * grid, self.asinh, values, 0, 0) for s in (1, -1))
            total: np.ndarray = sum(sides, np.zeros(len(grid)))
            return total

        return self._replace(
            asinh=grid,
            mean=both(self.mean),
            standard_error=both(self.standard_error),
        )


def density_curves(
    densities: Sequence[linalg.SpectralDensity],
    *,
    scale: float = 0.002,
    width: float = 0.12,
    num_points: int = 1001,
) -> list[DensityCurve]:
    """Computes curves of several spectra on one grid, blurred alike.

    The grid spans the nodes of all spectra and four widths on either side.

    Args:
      densities: at least one, each a batch of one, such as
        :attr:`opnorm.analysis.ParameterSpectrum.density`.
      scale: see :class:`DensityCurve`, as a fraction of the largest modulus of all
        nodes.
      width: see :class:`DensityCurve`.
      num_points: G, at least 2.

    Returns:
      A curve for each density, in order.

    Raises:
      ValueError: for no density, one that is not a batch of one, a scale or a width
        that is not positive, or a number of points below 2.

    Example:
      >>> import numpy as np
      >>> from opnorm import analysis, linalg
      >>> nodes, weights = np.array([[[-1.0, 100.0]]]), np.array([[[0.25, 0.75]]])
      >>> (curve,) = analysis.density_curves([linalg.SpectralDensity(nodes, weights)])
      >>> bool(np.isclose(np.trapezoid(curve.mean, curve.asinh), 1, atol=1e-3))
      True
      >>> float(curve.eigenvalues[curve.mean.argmax()].round())
      100.0
    """
    linalg.check_length("scale", scale, positive=True)
    linalg.check_length("width", width, positive=True)
    num_points = linalg.check_count("num_points", num_points, 2)
    shapes = [density.nodes.shape for density in densities]
    if not shapes or any(len(shape) != 3 or shape[0] != 1 for shape in shapes):
        raise ValueError(
            f"densities has nodes of the shapes {shapes}; each must be (1, P, m), and "
            "at least one is needed."
        )
    nodes = np.concatenate([np.ravel(density.nodes) for density in densities])
    unit = scale * float(np.abs(nodes).max()) or 1.0
    ends = np.arcsinh([nodes.min() / unit, nodes.max() / unit])
    grid = np.linspace(ends[0] - 4 * width, ends[1] + 4 * width, num_points)
    curves = []
    for density in densities:
        found = _evaluate(density, unit, jnp.asarray(grid), width)
        mean, error = (np.asarray(part)[0] for part in found)
        curves.append(DensityCurve(unit, width, grid, mean, error))
    return curves


@functools.partial(jax.jit, static_argnames="width")
def _evaluate(
    density: linalg.SpectralDensity,
    scale: float | jax.Array,
    grid: jax.Array,
    width: float,
) -> linalg.Estimate:
    nodes = jnp.arcsinh(density.nodes / scale)
    return linalg.SpectralDensity(nodes, density.weights).at(grid, width)
