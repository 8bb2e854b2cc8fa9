"""Accuracy of networks that draw random numbers."""

import functools

import jax
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis import inputs
from opnorm.analysis.accuracy import Accuracy, accuracy_over_draws
from opnorm.analysis.batches import in_batches
from opnorm.attacks import checks, parts, randomness
from opnorm.attacks.checks import Bounds


def randomized_accuracy(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_draws: int = 20,
    batch_size: int = 100,
    key: jax.Array,
    index: np.ndarray | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Accuracy:
    """Computes the accuracy of a randomised network, the mean over draws.

    Args:
      f: ``f(x, keys) -> (B, K)`` with a typed key for each example, ``(B,)``; see
        :func:`opnorm.attacks.randomized`. Best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds. uint8 images are divided by
        255, float images are taken as they are.
      labels: ``(N,)`` int.
      num_draws: draws of each example, at least 1.
      batch_size: examples per compiled call, which evaluates ``num_draws`` times as
        many rows.
      key: typed key of the draws.
      index: ``(N,)`` int, number of each example in the data set, which its draws
        depend on; None for 0, ..., N - 1.
      bounds: box (low, high) that images lie in; None for a network that takes any
        values.

    Returns:
      The accuracy. ``correct`` has the fraction of the draws for each example, and the
      standard error is that of their mean, over draws and examples.

    Raises:
      ValueError: for no examples, labels, an index, a number of draws or a batch size
        that do not fit, images outside the bounds, a key that is not typed, a network
        of one logit, or one that takes no keys.

    Example:
      Noise of the size of the margin makes one of six draws wrong.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x, keys):
      ...     noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys)
      ...     margin = x + 0.5 * noise
      ...     return jnp.concatenate([margin, -margin], axis=1)
      >>> images, labels = np.full((4, 1), 0.5, np.float32), np.zeros(4, int)
      >>> found = analysis.randomized_accuracy(
      ...     f, images, labels, num_draws=2000, key=jax.random.key(0)
      ... )
      >>> round(found.mean, 2)
      0.84
    """
    linalg.check_count("num_draws", num_draws, 1)
    inputs.check_examples(images, labels, batch_size)
    inputs.check_bounds(images, checks.check_bounds(bounds))
    index = inputs.check_index(index, len(images))
    f = linalg.prepare_network(f)
    inputs.check_labels(f, images, labels, min(batch_size, len(images)), key=key)
    draws = attacks.Draws(1, num_draws, "all")
    measure = functools.partial(_wrong, draws=draws)
    given = (images, np.asarray(labels), index)
    wrong = in_batches(measure, f, given, batch_size, (key,))
    return accuracy_over_draws(wrong, num_draws)


@linalg.network_program
def _wrong(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    key: jax.Array,
    *,
    draws: attacks.Draws,
) -> jax.Array:
    """Returns the fraction of wrong draws, ``(b,)``."""
    keys, goal = parts.fold_in(key, number), (False, 0.0)
    found = randomness.judge(draws, f, labels, keys, inputs.to_pixels(x), goal, 0)
    assert found.rate is not None
    return found.rate
