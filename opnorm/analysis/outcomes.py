"""Losses, margins and probabilities of a data set, and gaps between two data sets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.analysis import inputs, margins
from opnorm.analysis.averages import Average, average
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import to_pixels
from opnorm.attacks import checks, losses, parts
from opnorm.attacks.checks import Bounds


class Outcomes(NamedTuple):
    """Results of a network for N examples, all ``(N,)`` and at least float32.

    A network that returns NaN for an example gives NaN here, and the example is not
    correct.

    Attributes:
      loss: cross-entropy, in nats.
      margin: ``z_y - max_{i != y} z_i`` of the logits z, see
        :func:`opnorm.analysis.margin`.
      probability: softmax probability of the label, in [0, 1].
      correct: bool, as in :func:`opnorm.analysis.evaluate_accuracy`.
    """

    loss: np.ndarray
    margin: np.ndarray
    probability: np.ndarray
    correct: np.ndarray


class Gap(NamedTuple):
    """The means of a quantity on two sets of examples, and their difference.

    Attributes:
      train: mean on the training set.
      test: mean on the test set.
      difference: mean on the test set minus that on the training set.
      standard_error: of the difference, for independent sets; NaN where one of them has
        a single example.
    """

    train: float
    test: float
    difference: float
    standard_error: float


class Gaps(NamedTuple):
    """The generalisation gaps of a network.

    Attributes:
      loss: of the cross-entropy, in nats.
      error: of the error in [0, 1]. The difference is the training accuracy minus the
        test accuracy.
    """

    loss: Gap
    error: Gap


def evaluate_outcomes(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 100,
    bounds: Bounds = (0.0, 1.0),
) -> Outcomes:
    """Computes loss, margin and probability of each example in one pass.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds. uint8 images are divided by
        255, float images are taken as they are.
      labels: ``(N,)`` int.
      batch_size: examples per compiled call.
      bounds: box (low, high) that images lie in; None for a network that takes any
        values, such as standardised ones.

    Raises:
      ValueError: for no examples, labels or a batch size that do not fit, images
        outside the bounds, or a network of one logit.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Definition 3 and Figs. 4 and 5.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x):
      ...     return jnp.log(jnp.concatenate([x, 1 - x], axis=1))
      >>> images, labels = np.float32([[0.75], [0.25]]), np.array([0, 0])
      >>> found = analysis.evaluate_outcomes(f, images, labels)
      >>> print(found.probability, found.correct)
      [0.75 0.25] [ True False]
    """
    inputs.check_examples(images, labels, batch_size)
    inputs.check_bounds(images, checks.check_bounds(bounds))
    f = linalg.prepare_network(f)
    inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    return Outcomes(*in_batches(_outcomes, f, (images, labels), batch_size))


def generalization_gaps(train: Outcomes, test: Outcomes) -> Gaps:
    """Computes the gaps in loss and error between training and test examples.

    Args:
      train: outcomes for training examples, without augmentation.
      test: outcomes for test examples.

    Raises:
      ValueError: for no example.

    Source: see :func:`evaluate_outcomes`; Eq. 1 and Tables 2 to 6.

    Example:
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def outcomes(loss, correct):
      ...     nothing = np.zeros(len(loss))
      ...     return analysis.Outcomes(np.array(loss), nothing, nothing, correct)
      >>> train = outcomes([0.1, 0.3], np.array([True, True]))
      >>> test = outcomes([0.5, 0.9], np.array([True, False]))
      >>> gaps = analysis.generalization_gaps(train, test)
      >>> round(gaps.loss.difference, 3), gaps.error.difference
      (0.5, 0.5)
    """
    return Gaps(
        _gap(average(train.loss), average(test.loss)),
        _gap(average(~train.correct), average(~test.correct)),
    )


def _gap(train: Average, test: Average) -> Gap:
    error = np.hypot(train.standard_error, test.standard_error)
    difference = test.mean - train.mean
    return Gap(float(train.mean), float(test.mean), float(difference), float(error))


@linalg.network_program
def _outcomes(
    f: linalg.Network, x: jax.Array, labels: jax.Array
) -> tuple[jax.Array, ...]:
    logits = f(to_pixels(x))
    loss = losses.cross_entropy(logits, labels)
    correct = ~parts.decided(logits, labels, targeted=False)
    return loss, margins.margin(logits, labels), jnp.exp(-loss), correct
