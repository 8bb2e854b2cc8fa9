"""Accuracy under attacks of one and of many steps, measured while a network trains.

Training with an attack of one step may end in catastrophic overfitting: within a few
hundred updates the network learns to resist that attack alone, and its accuracy under
PGD falls to zero while the one under FGSM rises. The loss of the training does not show
it, so both accuracies are measured between epochs, on the same few images.

Source: Wong, Rice & Kolter 2020, Section 5; "Towards Understanding the Regularization
of Adversarial Robustness on Neural Networks" 2020, Appendix B.6, trains with FGSM.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from opnorm import attacks, data, linalg, models
from opnorm.training import units
from opnorm.training.config import Config
from opnorm.training.plan import Plan, largest_shape

# The first training examples, or all if there are fewer.
NUM_EXAMPLES = 128
# A network that resists PGD has a gap of a few hundredths. The standard error of a gap
# over 128 examples is 0.044 at most.
LARGEST_GAP = 0.2
_PGD_STEPS = 10
# The methods that train at points of PGA, without another term that bounds slopes.
_ATTACKING = ("adversarial", "adversarial_only")


class RobustCheck:
    """Measures the network of a run between epochs, and warns once of a gap.

    Args:
      config: the configuration of the run.
      plan: its steps.
      train_set: its training set.
      every: number of epochs between measurements; None for 1 where the configuration
        trains with an attack of one step and 0 elsewhere; 0 for none.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        train_set: data.Dataset | data.Stream,
        every: int | None,
    ) -> None:
        self._every = int(_has_one_step(config)) if every is None else every
        self._plan, self._warned = plan, False
        config = units.in_pixels(config)
        self._p, self._epsilon = config.p, config.epsilon
        if self._every:
            self._images, self._labels = _examples(train_set, plan)

    def is_due(self, steps: int) -> bool:
        """Whether the network after the first ``steps`` updates is measured."""
        return self._plan.is_due(steps, self._every)

    def measure(self, network: models.Network, steps: int) -> dict[str, float]:
        """Returns "fgsm_accuracy" and "pgd_accuracy", in [0, 1].

        A warning is logged the first time that the first exceeds the second by more
        than ``LARGEST_GAP``.

        Args:
          network: the network after the first ``steps`` updates.
          steps: their number.
        """
        one, many = _accuracies(
            network,
            self._images,
            self._labels,
            # The same starts each time, so that measurements differ by the network.
            jax.random.key(0),
            p=self._p,
            epsilon=self._epsilon,
        )
        found = {"fgsm_accuracy": float(one), "pgd_accuracy": float(many)}
        gap = found["fgsm_accuracy"] - found["pgd_accuracy"]
        if gap > LARGEST_GAP and not self._warned:
            self._warned = True
            logging.warning(
                "catastrophic overfitting at step %d, epoch %g: of %d training images "
                "%.0f %% withstand FGSM and %.0f %% PGD, which differ by more than "
                "%.0f %%; train with more num_steps, a smaller epsilon, or "
                "random_start and a step_size of about 1.25 epsilon.",
                steps,
                self._plan.epochs_done(steps),
                len(self._labels),
                100 * found["fgsm_accuracy"],
                100 * found["pgd_accuracy"],
                100 * LARGEST_GAP,
            )
        return found


def _has_one_step(config: Config) -> bool:
    return config.method in _ATTACKING and config.num_steps == 1


def _examples(
    train_set: data.Dataset | data.Stream, plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images ``(N, H, W, C)`` uint8 and labels that are attacked."""
    count = min(NUM_EXAMPLES, len(train_set))
    if isinstance(train_set, data.Stream):
        size, _, _ = largest_shape(train_set, plan)
        train_set = train_set.centre_crops(np.arange(count), image_size=size)
    return train_set.images[:count], train_set.labels[:count]


@linalg.network_program
def _accuracies(
    f: linalg.Network,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    p: float,
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:
    """Computes the accuracies under one step from the image and under PGD."""
    x = data.to_float(images)

    def accuracy(attack: attacks.Attack) -> jax.Array:
        logits = f(attack(f, x, labels, key))
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    one = attacks.fgm(p=p, epsilon=epsilon)
    many = attacks.pga(p=p, epsilon=epsilon, num_steps=_PGD_STEPS)
    return accuracy(one), accuracy(many)
