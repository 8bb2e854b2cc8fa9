"""Classes for targeted attacks to reach, for a whole data set."""

import functools

import jax
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches
from opnorm.attacks import parts, targets


def choose_targets(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    choice: str | np.ndarray,
    *,
    batch_size: int = 100,
    key: jax.Array | None = None,
    index: np.ndarray | None = None,
) -> np.ndarray:
    """Chooses a class other than the label for each example.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float. uint8 images are divided by 255.
      labels: ``(N,)`` int, the classes of the examples.
      choice: "random", "likeliest", "least_likely", or given classes ``(N,)``, as for
        :func:`opnorm.attacks.choose_targets`.
      batch_size: examples per compiled call.
      key: typed key of "random".
      index: ``(N,)`` int, number of each example in the data set, which its random
        target depends on; None for 0, ..., N - 1.

    Returns:
      ``(N,)`` int32: the labels of :func:`opnorm.analysis.attack_examples` with a
      targeted attack.

    Raises:
      ValueError: for no examples, labels, index or a batch size that do not fit, and
        for the reasons of :func:`opnorm.attacks.choose_targets`.

    Example:
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> images = np.float32([[0.1, 0.7, 0.4], [0.9, 0.2, 0.5]])
      >>> labels = np.array([1, 0])
      >>> analysis.choose_targets(lambda x: x, images, labels, "likeliest")
      array([2, 2], dtype=int32)
    """
    inputs.check_examples(images, labels, batch_size)
    index = inputs.check_index(index, len(images))
    f = linalg.prepare_network(f)
    labels = np.asarray(labels)
    classes = inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    if not isinstance(choice, str):
        given = (
            np.broadcast_to(choice, labels.shape) if np.ndim(choice) == 0 else choice
        )
        return np.asarray(targets.check_targets(given, labels, classes))
    if choice == "random":
        linalg.check_key(key)
    measure = functools.partial(_chosen, choice=choice)
    found: np.ndarray = in_batches(
        measure, f, (images, index, labels), batch_size, (key,)
    )
    return found


@linalg.network_program
def _chosen(
    f: linalg.Network,
    x: jax.Array,
    number: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    choice: str,
) -> jax.Array:
    keys = None if key is None else parts.fold_in(key, number)
    return attacks.choose_targets(f, inputs.to_pixels(x), labels, choice, keys)
