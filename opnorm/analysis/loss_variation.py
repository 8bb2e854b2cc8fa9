"""The largest rise of the loss that projected gradient ascent finds near an example."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import to_pixels
from opnorm.attacks import checks, losses, parts
from opnorm.attacks.checks import Bounds


def loss_variation(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilons: Sequence[float],
    p: float = math.inf,
    num_steps: int = 10,
    relative_step: float = 0.25,
    num_restarts: int = 1,
    batch_size: int = 100,
    bounds: Bounds = (0.0, 1.0),
    key: jax.Array,
) -> np.ndarray:
    """Computes the largest rise of the cross-entropy on the paths of an attack.

    The attack is :func:`opnorm.attacks.pga` with a random start. The rise is::

        max_t l(x_t) - l(x)

    over all its points x_t, those of all restarts and the starts included, and over x
    itself, so it is at least 0. It is a lower bound of the largest rise in the ball.
    Examples that are misclassified are attacked, too. The paper states neither steps
    nor step size for these budgets; the defaults are those of its other attacks, with
    the step scaled to epsilon.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds. uint8 images are divided by
        255, float images are taken as they are.
      labels: ``(N,)`` int.
      epsilons: E budgets in [0, 1] pixel units; all share one program.
      p: exponent of the norm, in [1, inf].
      num_steps: steps of each restart, at least 0.
      relative_step: step size as a multiple of epsilon, positive.
      num_restarts: random starts, at least 1.
      batch_size: examples per compiled call.
      bounds: box (low, high) that the points stay in, or None.
      key: typed key of the random starts.

    Returns:
      ``(E, N)``, at least float32, in nats. Points whose loss is NaN do not count. NaN
      where the loss at x is NaN, and 0 where it is inf.

    Raises:
      ValueError: for no examples, labels or a batch size that do not fit, images
        outside the bounds, a key that is not typed, no budgets, an option out of range,
        or a network of one logit.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Appendix B.5 and Table 1, which has the mean and standard
    deviation over the test set.

    Example:
      The loss of one pixel x is log(1 + exp(-x)) for class 0.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x):
      ...     return jnp.concatenate([x, 0 * x], axis=1)
      >>> image, label, key = np.float32([[0.5]]), np.array([0]), jax.random.key(0)
      >>> rise = analysis.loss_variation(f, image, label, epsilons=[0.1], key=key)
      >>> bool(np.isclose(rise[0, 0], np.log1p(np.exp(-0.4)) - np.log1p(np.exp(-0.5))))
      True
    """
    p = linalg.check_exponent("p", p)
    num_steps = linalg.check_count("num_steps", num_steps, 0)
    num_restarts = linalg.check_count("num_restarts", num_restarts, 1)
    linalg.check_length("relative_step", relative_step, positive=True)
    linalg.check_key(key)
    bounds = checks.hashable(checks.check_bounds(bounds))
    inputs.check_examples(images, labels, batch_size)
    pattern = attacks.pga(p=p, epsilon=0.0, bounds=bounds)
    budgets = inputs.read_budgets("epsilons", epsilons, pattern)
    images = inputs.check_bounds(images, pattern.stages[0].bounds)
    f = linalg.prepare_network(f)
    inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    measure = functools.partial(
        _rises, p=p, num_steps=num_steps, num_restarts=num_restarts, bounds=bounds
    )
    rows = (images, labels, np.arange(len(images)))
    step = np.float32(relative_step)
    return np.stack(
        [
            in_batches(measure, f, rows, batch_size, (epsilon, step, key))
            for epsilon in budgets
        ]
    )


@linalg.network_program
def _rises(
    f: linalg.Network,
    images: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    epsilon: jax.Array,
    relative_step: jax.Array,
    key: jax.Array,
    *,
    p: float,
    num_steps: int,
    num_restarts: int,
    bounds: Bounds,
) -> jax.Array:
    """The largest rise of each example of a batch, ``(B,)``."""
    x = to_pixels(images)
    keys = parts.fold_in(key, number)
    draw = attacks.uniform_noise(p=p, epsilon=epsilon, bounds=bounds)
    # A step of length 0 is no step. With epsilon = 0 every step ends at x.
    size = jnp.where(epsilon > 0, relative_step * epsilon, 1.0)
    move = attacks.pga(
        p=p,
        epsilon=epsilon,
        num_steps=1,
        step_size=size,
        random_start=False,
        bounds=bounds,
    )

    def loss(point: jax.Array) -> jax.Array:
        return losses.cross_entropy(f(point), labels)

    clean = loss(x)

    def step(
        i: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        point, highest = carry
        restart, number_of_step = jnp.divmod(i, num_steps + 1)
        point = jax.lax.cond(
            number_of_step == 0,
            lambda: draw(f, x, labels, parts.fold_in(keys, restart)),
            lambda: move(f, x, labels, start=point),
        )
        return point, jnp.fmax(highest, loss(point))

    rounds = num_restarts * (num_steps + 1)
    _, highest = linalg.fori_loop(rounds, step, (x, clean))
    rise = jnp.where(jnp.isposinf(clean), 0.0, highest - clean)
    return jnp.where(jnp.isnan(clean), jnp.nan, rise)
