"""Accuracy on the validation split, measured while a network trains.

Accuracy under attack often falls again long before a training ends, while accuracy on
clean images still rises ("robust overfitting", Rice, Wong & Kolter 2020). The examples
that show it must be neither those that are trained on nor those of the test split.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from opnorm import attacks, data, linalg, models
from opnorm.linalg import PyTree
from opnorm.runs import JsonObject
from opnorm.training import feed, units
from opnorm.training.config import Config
from opnorm.training.plan import Plan
from opnorm.training.shardings import sharded

CLEAN = "validation_accuracy"
ATTACKED = "validation_pga_accuracy"
NUM_STEPS = 10


class Criterion(NamedTuple):
    """The accuracy by which the networks of a run are compared.

    Attributes:
      metric: the name of the accuracy that is compared; the larger one is better, and
        the earlier one among equals.
      source: its attack and its examples, in values that JSON can hold.
    """

    metric: str
    source: JsonObject

    def record(self, metrics: Mapping[str, float]) -> JsonObject:
        """Returns the entry "best" in the metadata of a checkpoint."""
        return {
            "metric": self.metric,
            "accuracy": metrics[self.metric],
            **self.source,
        }


class ValidationAccuracy:
    """Measures the network of a run between epochs on examples held out of it.

    Accuracy is measured on clean images, and under PGA with ``NUM_STEPS`` steps of
    length 2 epsilon / ``NUM_STEPS`` from a random start in the ball of the
    configuration's norm and epsilon. An example counts under attack if it is correct at
    both ends. With epsilon 0 there is no attack. Starts are the same each time, so that
    measurements differ by the network alone.

    Args:
      config: the configuration of the run.
      plan: its steps.
      mesh: devices that share each batch.
      validation_set: the examples.
      every: number of epochs between measurements, at least 1.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        mesh: Mesh,
        validation_set: data.Dataset,
        every: int,
    ) -> None:
        self._plan, self._every = plan, every
        self._examples, self._sharding = validation_set, sharded(mesh)
        pixels = units.in_pixels(config)
        self._p, self._epsilon = pixels.p, pixels.epsilon
        # A train step of a part of a batch fits into memory, and an attack needs less.
        size = plan.phases[-1].batch_size // config.accumulation_steps
        self._batch_size = min(size, -(-len(validation_set) // mesh.size) * mesh.size)
        # A standard network is not meant to withstand an attack, and seldom does.
        attacked = config.method != "standard" and self._epsilon > 0
        source: JsonObject = {"num_steps": NUM_STEPS if attacked else 0}
        if attacked:
            source |= {"p": str(self._p), "epsilon": self._epsilon}
        self.criterion = Criterion(
            ATTACKED if attacked else CLEAN, source | data.fingerprint(validation_set)
        )

    def is_due(self, steps: int) -> bool:
        """Whether the network after the first ``steps`` updates is measured."""
        return self._plan.is_due(steps, self._every)

    def measure(self, network: models.Network, steps: int) -> dict[str, float]:
        """Returns ``CLEAN`` and, unless epsilon is 0, ``ATTACKED``, in [0, 1].

        Args:
          network: the network after the first ``steps`` updates, in inference mode.
          steps: their number.
        """
        del steps
        count = len(self._examples)
        correct = np.zeros(2, np.int64)
        for start in range(0, count, self._batch_size):
            numbers = np.arange(start, start + self._batch_size)
            # Rows behind the last example are copies of it that do not count.
            rows = np.minimum(numbers, count - 1)
            host = self._examples.images[rows], self._examples.labels[rows], numbers
            batch = feed.place_rows(host, self._sharding)
            correct += np.asarray(
                _count_correct(
                    network, *batch, count=count, p=self._p, epsilon=self._epsilon
                )
            )
        clean, attacked = (correct / count).tolist()
        return {CLEAN: clean} | ({ATTACKED: attacked} if self._epsilon else {})


@linalg.network_program
def _count_correct(
    f: linalg.Network,
    images: jax.Array,
    labels: jax.Array,
    numbers: jax.Array,
    *,
    count: int,
    p: float,
    epsilon: float,
) -> jax.Array:
    """Counts the examples that are correct at x, and at x and under attack; (2,)."""

    def hits(points: jax.Array) -> jax.Array:
        logits: PyTree = f(points)
        return jnp.argmax(logits, axis=-1) == labels

    x = data.to_float(images)
    clean = hits(x) & (numbers < count)
    robust = jnp.zeros_like(clean)
    if epsilon:
        # A key for each example: batches of other sizes have the same starts.
        fold_in = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold_in(jax.random.key(0), numbers)
        attack = attacks.pga(p=p, epsilon=epsilon, num_steps=NUM_STEPS)
        robust = clean & hits(attack(f, x, labels, keys))
    return jnp.sum(jnp.stack([clean, robust]), axis=1, dtype=jnp.int32)
