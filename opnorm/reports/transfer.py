"""Accuracy on adversarial images that were made for another network."""

from typing import NamedTuple

from opnorm import analysis, linalg
from opnorm.reports.examples import ExampleSet


class Transfer(NamedTuple):
    """Results of a network on adversarial images of another one.

    Attributes:
      clean: accuracy on the N clean images.
      attacked: accuracy on the N attacked images.
      success: mean over the images that are adversarial for the attacked network and
        that this network has right: the fraction that it gets wrong when attacked.
    """

    clean: analysis.Accuracy
    attacked: analysis.Accuracy
    success: analysis.Average


def transfer(
    f: linalg.Network, examples: ExampleSet, *, batch_size: int = 100
) -> Transfer:
    """Measures a network on a set of adversarial images.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      examples: the set, for instance from :func:`load_examples`.
      batch_size: images in a compiled call.

    Raises:
      ValueError: for labels that are no classes of the network, and for the reasons of
        :func:`opnorm.analysis.evaluate_accuracy`.

    Example:
      The attacked images of the set are dark; a network with a lower threshold still
      has one of them right.

      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import reports
      >>> images, x_adv = np.float32([[0.6], [0.7]]), np.float32([[0.3], [0.45]])
      >>> found = reports.ExampleSet(
      ...     images, x_adv, np.array([0, 0]), np.array([True, True]),
      ...     np.array([False, False]), np.array([0, 1]), p=2, epsilon=0.3
      ... )
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.4, 0.4 - x], axis=1)
      >>> result = reports.transfer(f, found)
      >>> result.clean.mean, result.attacked.mean, float(result.success.mean)
      (1.0, 0.5, 0.5)
    """
    f = linalg.prepare_network(f)
    clean, attacked = (
        analysis.evaluate_accuracy(f, images, examples.labels, batch_size=batch_size)
        for images in (examples.images, examples.x_adv)
    )
    counted = examples.adversarial & clean.correct
    success = analysis.average(~attacked.correct, where=counted)
    return Transfer(clean, attacked, success)
