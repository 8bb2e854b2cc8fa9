"""Accuracy, robust accuracy and Jacobian spectra of a network on a data set.

One compiled program serves all networks of one structure, all budgets and all batches.
An attack must be pure and one object, not a new lambda in each call; see
:mod:`opnorm.analysis`.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg, operators
from opnorm.analysis import inputs, margins, robustness
from opnorm.analysis.averages import Average, average
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import AttackFactory, to_pixels
from opnorm.attacks import checks, parts, weights
from opnorm.attacks.checks import Bounds
from opnorm.linalg import PyTree


class Accuracy(NamedTuple):
    """The fraction of examples that are classified correctly.

    Attributes:
      mean: in [0, 1].
      standard_error: sample standard deviation over sqrt(N); NaN for one example.
      correct: ``(N,)`` bool. For a randomised network float64, the fraction of the
        draws in which the example is classified correctly; the standard error is then
        over both the draws and the examples, which are independent of each other.
    """

    mean: float
    standard_error: float
    correct: np.ndarray


class JacobianNorms(NamedTuple):
    """A (p, q) norm of the Jacobian at each example.

    Attributes:
      values: ``(N,)``, ``||J||_{p,q}``.
      right: ``(N, ...)``, the direction that attains it, of p-norm 1.
    """

    values: np.ndarray
    right: np.ndarray


class Spectrum(NamedTuple):
    """Singular values of the Jacobian at each example.

    Attributes:
      values: ``(N, k)``, largest first.
      right: ``(N, ...)``, the top right singular vector of each example.
    """

    values: np.ndarray
    right: np.ndarray


def evaluate_accuracy(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    top_k: int = 1,
    batch_size: int = 100,
    bounds: Bounds = (0.0, 1.0),
) -> Accuracy:
    """Computes the accuracy on clean examples.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds. uint8 images are divided by
        255, float images are taken as they are.
      labels: ``(N,)`` int.
      top_k: an example is correct where its label is among as many of the largest
        logits; from 1 to K - 1.
      batch_size: examples per compiled call.
      bounds: box (low, high) that images lie in, of numbers or of arrays that
        broadcast against one example; None for a network that takes any values, such as
        standardised ones.

    Raises:
      ValueError: for no examples, labels, a top_k or a batch size that do not fit,
        images outside the bounds, or a network of one logit.
    """
    inputs.check_examples(images, labels, batch_size)
    inputs.check_bounds(images, checks.check_bounds(bounds))
    f = linalg.prepare_network(f)
    classes = inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    top_k = linalg.check_count("top_k", top_k, 1, classes - 1)
    measure = functools.partial(_hits, top_k=top_k)
    return average_accuracy(in_batches(measure, f, (images, labels), batch_size))


def robust_accuracy(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: AttackFactory,
    epsilons: Sequence[float],
    batch_size: int = 100,
    key: jax.Array,
) -> list[Accuracy]:
    """Computes the fraction of examples that are correct at x and after an attack.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`. For a randomised attack ``f(x, keys)``, see
        :func:`opnorm.attacks.randomized`.
      images: ``(N, ...)``, uint8 or float, in the attack's bounds; see
        :func:`evaluate_accuracy`.
      labels: ``(N,)`` int, the classes that the attack leaves, or ``(N, ...)`` for an
        attack with a criterion.
      attack: ``epsilon -> attack``; epsilon is traced, so all budgets share one
        program. An attack without a budget breaks an example at epsilon only where its
        point lies within epsilon.
      epsilons: budgets, in [0, 1] pixel units.
      batch_size: examples per compiled call.
      key: typed key of the attack.

    Returns:
      An accuracy for each budget. For a randomised network it is the mean over draws
      that neither the search nor the choice of a point has seen, whatever the rule of
      the attack. :func:`opnorm.analysis.attack_examples` returns distances and points,
      too.

    Raises:
      ValueError: for no examples, labels or a batch size that do not fit, images that
        are neither uint8 nor float or outside the attack's bounds, a negative budget, a
        targeted attack, or a network of one logit.

    Example:
      The margins of three images of one pixel are 0.2, 0.6 and 1.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis, attacks
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> def fgm(epsilon):
      ...     return attacks.fgm(p=2, epsilon=epsilon)
      >>> images, labels = np.float32([[0.6], [0.8], [1.0]]), np.array([0, 0, 0])
      >>> curve = analysis.robust_accuracy(
      ...     f, images, labels, attack=fgm, epsilons=[0, 0.2], key=jax.random.key(0)
      ... )
      >>> [round(point.mean, 2) for point in curve]
      [1.0, 0.67]

    Source: Roth et al. 2020, Fig. 3.
    """
    if epsilons is None:
        raise ValueError("epsilons is None; it must be a list of budgets.")
    if inputs.make_pattern(attack, takes_randomized=True).targeted:
        raise ValueError("attack is targeted; its labels would be classes to reach.")
    attacked = robustness.attack_examples(
        f,
        images,
        labels,
        attack=attack,
        epsilons=epsilons,
        batch_size=batch_size,
        key=key,
    )
    if attacked.rate is not None and attacked.draws is not None:
        count = attacked.draws.judged_draws
        return [accuracy_over_draws(rate, count) for rate in attacked.rate]
    return [average_accuracy(~fallen) for fallen in attacked.success]


def conditional_accuracy(clean: Accuracy, robust: Accuracy) -> Average:
    """Computes the robust accuracy among the examples that are correct at x.

    The absolute robust accuracy is ``robust.mean``. It is the product of the
    conditional accuracy and the clean accuracy, since an example that is wrong at x is
    never robust.

    Args:
      clean: accuracy on N clean examples.
      robust: accuracy on the same examples after an attack, as :func:`robust_accuracy`
        returns it.

    Returns:
      Scalars: the mean in [0, 1], its standard error, and the number of examples that
      are correct at x. The mean is NaN where this number is 0.

    Raises:
      ValueError: for different numbers of examples, an example that is robust and not
        correct at x, or accuracies of a randomised network.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, the PGD accuracy of Tables 3 to 6.

    Example:
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> clean = analysis.Accuracy(0.75, 0.25, np.array([True, True, True, False]))
      >>> robust = analysis.Accuracy(0.5, 0.29, np.array([True, True, False, False]))
      >>> round(float(analysis.conditional_accuracy(clean, robust).mean), 3)
      0.667
    """
    if clean.correct.shape != robust.correct.shape:
        raise ValueError(
            f"clean and robust have {len(clean.correct)} and {len(robust.correct)} "
            "examples; they must have the same."
        )
    if {clean.correct.dtype, robust.correct.dtype} != {np.dtype(bool)}:
        raise ValueError(
            "clean and robust must hold bool; a randomised network has no set of "
            "examples that are correct."
        )
    if np.any(robust.correct & ~clean.correct):
        raise ValueError(
            "robust has a correct example that is wrong in clean; both must be of the "
            "same network and examples."
        )
    return average(robust.correct, where=clean.correct)


def perturbations(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: AttackFactory,
    epsilon: float | None,
    batch_size: int = 100,
    key: jax.Array,
) -> np.ndarray:
    """Computes attacked examples minus clean ones, ``(N, ...)``.

    They are zero where the attack ends outside the budget ``epsilon``, as an attack
    without a budget may. With ``epsilon=None`` an attack without a budget may end at
    any distance. Other arguments and errors are those of :func:`robust_accuracy`,
    except that the attack may be targeted.
    """
    pattern = inputs.make_pattern(attack)
    given = None if epsilon is None else [epsilon]
    (budget,) = inputs.read_budgets("epsilon", given, pattern)
    linalg.check_key(key)
    inputs.check_examples(images, labels, batch_size)
    boxes = (stage.bounds for stage in pattern.stages)
    images = inputs.check_bounds(images, *boxes)
    f = linalg.prepare_network(f)
    if pattern.needs_classes:
        inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    moved: np.ndarray = in_batches(
        functools.partial(_perturbed, attack=attack),
        f,
        (images, labels, np.arange(len(images))),
        batch_size,
        (budget, key),
    )
    return moved


def jacobian_spectrum(
    f: linalg.Network,
    images: np.ndarray,
    *,
    k: int | None = None,
    batch_size: int = 100,
) -> Spectrum:
    """Computes the leading singular values of ``d logits / d pixels`` per example.

    Args:
      f: ``(B, ...) -> (B, d)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      k: number of values; None for all min(d, n).
      batch_size: examples per compiled call.

    Raises:
      ValueError: for no examples, a bad batch size or k out of range.

    Source: Roth et al. 2020, Fig. 2 left, which shows the features.
    """
    measure = functools.partial(_singular, k=k)
    f = linalg.prepare_network(f)
    return Spectrum(*in_batches(measure, f, (images,), batch_size))


def jacobian_norms(
    f: linalg.Network,
    images: np.ndarray,
    *,
    p: float = 2.0,
    q: float = 2.0,
    scale: float | np.ndarray | None = None,
    batch_size: int = 100,
    key: jax.Array,
    **search: Hashable,
) -> JacobianNorms:
    """Computes ``||d logits / d pixels||_{p,q}`` per example.

    Args:
      f: ``(B, ...) -> (B, d)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      scale: units of length of the pixels, as for
        :func:`opnorm.operators.jacobian_norm`.
      batch_size: examples per compiled call.
      key: typed key of random starts.
      **search: options of :func:`opnorm.operators.jacobian_norm` that are plain
        numbers or names (method, num_steps, num_restarts, ...).

    Raises:
      ValueError: for no examples or a bad batch size, and for the reasons of
        :func:`opnorm.operators.jacobian_norm`.

    Source: Roth et al. 2020, Eq. 8.
    """
    measure = functools.partial(_normed, p=p, q=q, **search)
    rows = (images, np.arange(len(images)))
    f = linalg.prepare_network(f)
    given = None if scale is None else np.asarray(scale)
    return JacobianNorms(*in_batches(measure, f, rows, batch_size, (key, given)))


@linalg.network_program
def _hits(
    f: linalg.Network, x: jax.Array, labels: jax.Array, *, top_k: int
) -> jax.Array:
    f, labels = margins.decide_top_k(f, labels, top_k)
    return ~parts.decided(f(to_pixels(x)), labels, targeted=False)


@linalg.network_program
def _perturbed(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    epsilon: jax.Array,
    key: jax.Array,
    *,
    attack: AttackFactory,
) -> jax.Array:
    clean = to_pixels(x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
    bound = attack(epsilon)
    delta = bound(f, clean, labels, keys) - clean
    length = weights.length(bound.scale, delta, bound.p)
    kept = weights.within_budget(bound.scale, length, epsilon, clean, bound.p)
    return jnp.where(parts.like(kept, delta), delta, 0.0)


@linalg.network_program
def _normed(
    f: linalg.Network,
    x: jax.Array,
    number: jax.Array,
    key: jax.Array,
    scale: jax.Array | None,
    *,
    p: float,
    q: float,
    **search: PyTree,
) -> tuple[jax.Array, jax.Array]:
    key = jax.random.fold_in(key, number[0])
    found = operators.jacobian_norm(
        f, to_pixels(x), p=p, q=q, scale=scale, key=key, **search
    )
    return found.value, found.right


@linalg.network_program
def _singular(
    f: linalg.Network, x: jax.Array, *, k: int | None
) -> tuple[jax.Array, jax.Array]:
    pixels = to_pixels(x)
    outputs = jax.eval_shape(f, pixels).shape[1]
    most = min(outputs, math.prod(pixels.shape[1:]))
    found = operators.singular_triplets(f, pixels, most if k is None else k)
    return found.values, found.right[:, 0]


def average_accuracy(hits: np.ndarray) -> Accuracy:
    """Returns the accuracy of N examples that are correct or not, or in part."""
    found = average(hits)
    return Accuracy(float(found.mean), float(found.standard_error), hits)


def accuracy_over_draws(rate: np.ndarray, count: int) -> Accuracy:
    """Returns the accuracy of a randomised network.

    Args:
      rate: ``(N,)`` float32, the fraction of wrong draws.
      count: number of draws.
    """
    # Whole numbers first, since a fraction of float32 is not exact.
    return average_accuracy((count - np.rint(count * rate)).astype(float) / count)
