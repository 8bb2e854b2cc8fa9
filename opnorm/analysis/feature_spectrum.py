"""All singular values of a Jacobian, and alignment with all of its singular vectors.

The Jacobian of the features is large: 1024 x 3072 numbers for one example of CNN7 at
width 128. Therefore few examples are decomposed at a time, within a limit of memory,
and only the results are kept.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg, operators
from opnorm.analysis import inputs
from opnorm.analysis.alignment import alignment, pearson_alignment
from opnorm.analysis.batches import in_batches, reporting_progress
from opnorm.analysis.inputs import check_examples, evaluate
from opnorm.analysis.linearity import check_perturbations
from opnorm.linalg.dtypes import at_least_single

# Arrays of the Jacobian's size that exist at once: the Jacobian, its right singular
# vectors, and those of the decomposition. A measurement on CPU gave about 3.
_COPIES = 4


class RankAlignment(NamedTuple):
    """Singular values, and alignment with each right singular vector v_r.

    Attributes:
      values: ``(N, R)`` with R = min(d, n), largest first.
      defined: ``(N, R)`` bool: the value is larger than the rounding error of zero, so
        the Jacobian determines v_r.
      cosine: ``(N, P, R)`` in [0, 1], ``|cos(z_p, v_r)|``; 0 where v_r is not defined.
      pearson: ``(N, P, R)``, likewise the absolute Pearson correlation.
    """

    values: np.ndarray
    defined: np.ndarray
    cosine: np.ndarray
    pearson: np.ndarray


def singular_values(
    f: linalg.Network,
    images: np.ndarray,
    *,
    batch_size: int = 100,
    max_bytes: int = 2**30,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Computes all singular values of ``d outputs / d pixels`` at each example.

    The Jacobian itself is decomposed. In float32 its Gram matrix would lose all values
    below about 3e-4 of the largest one to rounding.

    Args:
      f: ``(B, ...) -> (B, d)``, features or logits, in inference mode; best a callable
        pytree, see :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      batch_size: largest number of examples per compiled call.
      max_bytes: largest number of bytes for Jacobians and their decompositions; the
        network itself needs further memory.
      on_progress: called with the fraction of the examples that is done, in [0, 1].

    Returns:
      ``(N, min(d, n))``, largest first.

    Raises:
      ValueError: for no examples, a bad batch size, or a limit too low for one example.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> f = jax.tree_util.Partial(lambda w, x: x @ w, np.diag([3.0, 1.0, 2.0]))
      >>> images = np.full((2, 3), 0.5, np.float32)
      >>> analysis.singular_values(f, images).round(3).tolist()
      [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]

    Source: Roth et al. 2020, Fig. 2 left.
    """
    check_examples(images, images, batch_size)
    f = linalg.prepare_network(f)
    size = _batch_size(f, images, batch_size, max_bytes)
    measure = functools.partial(_values, max_bytes=max_bytes)
    reporting = reporting_progress(measure, len(images), size, on_progress)
    values: np.ndarray = in_batches(reporting, f, (images,), size)
    return values


def alignment_by_rank(
    f: linalg.Network,
    images: np.ndarray,
    perturbations: Sequence[np.ndarray],
    *,
    batch_size: int = 100,
    max_bytes: int = 2**30,
    on_progress: Callable[[float], None] | None = None,
) -> RankAlignment:
    """Computes how perturbations align with each right singular vector at x.

    Args:
      f: ``(B, ...) -> (B, d)``, features or logits, in inference mode; best a callable
        pytree, see :mod:`opnorm.analysis`.
      images: ``(N, ...)``, x, the points of the Jacobian, uint8 or float in [0, 1].
      perturbations: P arrays ``(N, ...)`` float, at least one.
      batch_size: largest number of examples per compiled call.
      max_bytes: see :func:`singular_values`.
      on_progress: see :func:`singular_values`.

    Raises:
      ValueError: for perturbations that do not fit, and for the reasons of
        :func:`singular_values`.

    Source: Roth et al. 2020, Fig. 2 right. The paper says cosine; its code computes the
    Pearson correlation.
    """
    if not len(perturbations):
        raise ValueError("perturbations is empty; give at least one array.")
    for array in perturbations:
        check_perturbations(images, array, batch_size)
    f = linalg.prepare_network(f)
    size = _batch_size(f, images, batch_size, max_bytes)
    measure = functools.partial(_ranked, max_bytes=max_bytes)
    reporting = reporting_progress(measure, len(images), size, on_progress)
    rows = (images, *perturbations)
    return RankAlignment(*in_batches(reporting, f, rows, size))


@linalg.network_program
def _values(f: linalg.Network, x: jax.Array, *, max_bytes: int) -> jax.Array:
    matrix = _jacobian(f, x, max_bytes)
    return jnp.linalg.svd(matrix, full_matrices=False, compute_uv=False)


@linalg.network_program
def _ranked(
    f: linalg.Network, x: jax.Array, *perturbations: jax.Array, max_bytes: int
) -> tuple[jax.Array, ...]:
    matrix = _jacobian(f, x, max_bytes)
    _, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    # The threshold of numpy.linalg.matrix_rank.
    rounding = max(matrix.shape[1:]) * linalg.machine_epsilon(matrix.dtype)
    defined = values > rounding * values[:, :1]

    def by_rank(measure: Callable[..., jax.Array]) -> jax.Array:
        each = jax.vmap(measure, in_axes=(None, 1), out_axes=1)
        found = [each(z.reshape(len(x), -1), right) for z in perturbations]
        return jnp.where(defined[:, None], jnp.stack(found, axis=1), 0.0)

    return values, defined, by_rank(alignment), by_rank(pearson_alignment)


def _jacobian(f: linalg.Network, x: jax.Array, max_bytes: int) -> jax.Array:
    """Returns Jacobians ``(B, d, n)``, at least float32."""
    pixels = inputs.to_pixels(x)
    dense = operators.dense_jacobian(f, pixels, max_bytes=max_bytes)
    matrix = dense.reshape(*dense.shape[:2], -1)
    return matrix.astype(at_least_single(matrix.dtype))


def _batch_size(
    f: linalg.Network,
    images: np.ndarray,
    batch_size: int,
    max_bytes: int,
) -> int:
    """Returns the examples per call, so that calls are about equally full."""
    one = jax.eval_shape(inputs.to_pixels, images[:1])
    outputs = evaluate.eval_shape(f, one)
    wide = at_least_single(one.dtype).itemsize
    needed: int = _COPIES * outputs.shape[1] * math.prod(one.shape) * wide
    if needed > max_bytes:
        raise ValueError(
            f"max_bytes is {max_bytes}; the Jacobian of one example and its "
            f"decomposition need {needed}."
        )
    largest = min(batch_size, max_bytes // needed, len(images))
    calls = math.ceil(len(images) / largest)
    return math.ceil(len(images) / calls)
