"""Measures one network for experiments.gradient_regularization.

The results are the distances of the nearest misclassified points that attacks find, and
the least distances that slope and curvature of the margin promise. Errors, distances
and bounds are of the attacked images, all of the same ones, and are computed from the
values by image that results.json holds. Only the largest slope and curvature, which
bounds are made of, are taken over all test images.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import cache, evaluation
from experiments.gradient_regularization.attacks import (
    Settings,
    decide,
    find_nearest,
)
from opnorm import analysis, data, linalg
from opnorm.analysis import batches

# What stands for the margin where curvature is measured, by what results call it: the
# paper's, which may lie below the margin, and one that does not. The margin of the top
# k, which the paper takes as it is, has neither.
SMOOTH_LOSSES = {
    "soft": analysis.soft_margin,
    "log_sum_exp": analysis.log_sum_exp_margin,
}
# Pixels up to 1 are rounded, and so is the distance between two pictures: in Linf an
# attack of budget 1/255 may find a point 6e-8 beyond it.
_ROUNDING = float(np.finfo(np.float32).eps)


class Measured(NamedTuple):
    """The measurements of a network on N images, the first A of them attacked.

    Attributes:
      right: ``(N,)`` bool.
      distance: ``(A,)``, of the nearest point that any attack found; 0 where the
        network is wrong, inf where none was found.
      by_attack: ``(attacks, A)``, what each found.
      seconds: ``(attacks,)``.
      slope: of the margin, without its curvature.
      curved: by loss, where the network is smooth and p = 2.
    """

    right: np.ndarray
    distance: np.ndarray
    by_attack: np.ndarray
    seconds: np.ndarray
    slope: analysis.Regularity
    curved: dict[str, analysis.Regularity]


def measure(
    f: linalg.Network,
    pictures: data.Dataset,
    attacked: int,
    settings: Settings,
    *,
    smooth: bool,
    identity: str,
    parts: cache.Parts,
    description: str,
) -> Measured:
    """Measures a network; what was measured by an interrupted process is read again.

    Args:
      f: ``(B, H, W, C) -> (B, K)`` in inference mode, a callable pytree.
      pictures: the test images.
      attacked: how many of them are attacked, the first ones.
      settings: how.
      smooth: whether the network has a curvature.
      identity: of network and images; see :func:`experiments.common.cache.fingerprint`.
      parts: where parts of the results are kept.
      description: of the progress.
    """
    right = batches.in_batches(
        functools.partial(decide, top_k=settings.top_k),
        f,
        (pictures.images, pictures.labels),
        settings.batch_size,
    )
    regularity = functools.partial(_regularity, f, pictures, settings, parts, identity)
    curved = {}
    if smooth and settings.p == 2:
        margin = {"margin": _margin(settings.top_k)}
        losses = SMOOTH_LOSSES if settings.top_k == 1 else margin
        curved = {
            name: regularity(name, loss, settings.lanczos_steps)
            for name, loss in losses.items()
        }
    found = find_nearest(
        f,
        pictures.slice(0, attacked),
        right[:attacked],
        settings,
        parts,
        identity,
        description,
    )
    nearest = np.where(right[:attacked], found["distance"].min(axis=0), 0.0)
    return Measured(
        right,
        nearest,
        found["distance"],
        found["seconds"],
        regularity("margin", _margin(settings.top_k), 0),
        curved,
    )


def summary(found: Measured, settings: Settings) -> dict[str, Any]:
    """Sums up what was measured, as plain numbers and lists."""
    attacked = len(found.distance)
    right = found.right[:attacked]
    # A later attack, which may begin at the best point, has to find a nearer one.
    winner = np.where(np.isinf(found.distance), -1, found.by_attack.argmin(axis=0))
    slope = found.slope.gradient_norm
    bounds = {
        "lipschitz": analysis.lipschitz_bound(found.slope.loss, slope.max()),
        **_curvature_bounds(found.curved),
    }
    card = {
        "distances": _listed(found.distance),
        "attacks": {
            str(spec): {
                "found": _part(np.isfinite(found.by_attack[place])[right]),
                "nearest": _part((winner == place)[right]),
                "seconds": float(found.seconds[place]),
            }
            for place, spec in enumerate(settings.attacks)
        },
        "slope": {"mean": float(slope.mean()), "max": float(slope.max())},
        "curvature": {
            name: {
                kind: {"mean": float(values.mean()), "max": float(values.max())}
                for kind, values in (
                    ("signed", regularity.curvature),
                    ("absolute", regularity.absolute_curvature),
                )
            }
            | {"largest_error": float(regularity.curvature_error.max())}
            for name, regularity in found.curved.items()
        },
        "bounds": {
            name: {"values": _listed(bound[:attacked])}
            for name, bound in bounds.items()
        },
    }
    return of_images(card, settings.epsilons, settings.largest)


def of_images(
    card: Mapping[str, Any], epsilons: Sequence[float], largest: float
) -> dict[str, Any]:
    """Computes errors, distances and bounds from the values by image of a summary.

    Args:
      card: of :func:`summary`, or of an earlier results.json: "distances", and "values"
        of each of "bounds". Other entries are kept.
      epsilons: errors are computed within these distances.
      largest: the distance that an image counts with that no attack broke.

    Returns:
      The card with "clean_error", "distance", "standard_error", "median", "unbroken"
      and "error_at", all of the same images, and each bound with "mean",
      "standard_error" and "violations".
    """
    distance = np.asarray(card["distances"], np.float64)
    capped = np.minimum(distance, largest)
    mean = analysis.average(capped)
    return {
        **card,
        # An image that is wrong already is at distance 0, and no other is.
        "clean_error": float(np.mean(distance == 0)),
        "distance": float(mean.mean),
        "standard_error": float(mean.standard_error),
        "median": float(np.median(capped)),
        "unbroken": float(np.isinf(distance).mean()),
        "error_at": {
            f"{epsilon:g}": float(np.mean(distance <= epsilon * (1 + 1e-6) + _ROUNDING))
            for epsilon in epsilons
        },
        "bounds": {
            name: _bound(np.asarray(bound["values"], np.float64), distance)
            for name, bound in card["bounds"].items()
        },
    }


def _bound(values: np.ndarray, distance: np.ndarray) -> dict[str, Any]:
    mean = analysis.average(values)
    return {
        "mean": float(mean.mean),
        "standard_error": float(mean.standard_error),
        "violations": analysis.violations(values, distance),
        "values": _listed(values),
    }


def _listed(values: np.ndarray) -> list[float]:
    """Numbers with the nine digits that tell every float32 from its neighbours."""
    return [float(f"{value:.9g}") for value in values]


def improvement_ratio(
    distance: float, error: float, distance_before: float, error_before: float
) -> float | None:
    """Computes the gain in distance over the rise of the clean error, both relative.

    All four numbers must be of the same images.

    Returns:
      ``R_mu / R_e``; None where the errors are equal, or the network before has no
      error or no distance.

    Source: Finlay & Oberman, section 4.
    """
    cards = [
        {"best_known": {"": {"mean_distance": mu}}, "clean_accuracy": 1 - e}
        for mu, e in ((distance, error), (distance_before, error_before))
    ]
    return evaluation.improvement(cards[0], cards[1], "")["ratio"]


def ratio_error(distances: np.ndarray, before: np.ndarray, largest: float) -> float:
    """Computes the standard error over images of a ratio of means over seeds.

    Errors and distances of both rows are means over the same images, which makes them
    rise and fall together. The jackknife takes this into account: it leaves out one
    image after another, of all networks at once.

    Args:
      distances: ``(S, A)``, 0 where a network is wrong, inf where no attack succeeded.
      before: ``(S', A)``, those of the undefended networks.
      largest: the distance that an image counts with that no attack broke.

    Returns:
      The standard error; inf where the two clean errors are equal without some image,
      so that the ratio does not exist.

    Source: Efron & Stein 1981 for the jackknife.
    """
    left_out = []
    for image in range(distances.shape[1]):
        means = []
        for each in (distances, before):
            kept = np.delete(each, image, axis=1)
            means += [np.minimum(kept, largest).mean(), np.mean(kept == 0)]
        ratio = improvement_ratio(*map(float, means))
        if ratio is None:
            return math.inf
        left_out.append(ratio)
    spread = np.sum((np.array(left_out) - np.mean(left_out)) ** 2)
    return float(np.sqrt(spread * (len(left_out) - 1) / len(left_out)))


def _curvature_bounds(
    curved: dict[str, analysis.Regularity],
) -> dict[str, np.ndarray]:
    return {
        f"{name}_{kind}": analysis.curvature_bound(
            regularity.loss, regularity.gradient_norm, largest
        )
        for name, regularity in curved.items()
        for kind, largest in (
            ("signed", regularity.curvature.max()),
            ("absolute", regularity.absolute_curvature.max()),
        )
    }


def _part(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if chosen.size else None


def _regularity(
    f: linalg.Network,
    pictures: data.Dataset,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
    name: str,
    loss: Any,
    num_steps: int,
) -> analysis.Regularity:
    key = {
        "identity": identity,
        "loss": name,
        "p": settings.p,
        "top_k": settings.top_k,
        "num_steps": num_steps,
        "seed": settings.seed,
    }

    def compute() -> cache.Arrays:
        found = analysis.loss_regularity(
            f,
            pictures.images,
            pictures.labels,
            loss=loss,
            p=settings.p,
            num_steps=num_steps,
            batch_size=settings.batch_size,
            key=jax.random.key(settings.seed),
        )
        return found._asdict()

    return analysis.Regularity(**parts.cached(key, compute))


@functools.cache
def _margin(top_k: int) -> Callable[..., Any]:
    if top_k == 1:
        return analysis.probability_margin
    return functools.partial(analysis.top_k_margin, k=top_k)
