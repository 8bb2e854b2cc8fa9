"""Global SNR with one power iteration against ten: the paper's Figs. 10 and 11."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cache, measure, records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.reproduce.measure import Trained
from experiments.reproduce.networks import Network
from experiments.reproduce.tables import label
from opnorm import analysis, data

# The rows that the figures compare, and the networks that they start from.
COMPARED = ("roth_cnn7_global_snr", "roth_cnn7_global_snr_10")
PRESETS = ("roth_cnn7_standard", *COMPARED)
_KINDS = ("random", "adversarial")
# Golub-Kahan steps for the largest singular value and for its vector.
_SEARCH_STEPS = 20
_BATCH_SIZE = 100

_alignment = jax.jit(analysis.alignment)


class Settings(NamedTuple):
    """How the networks are measured around images.

    Attributes:
      epsilons: L2 lengths of PGA, in [0, 1] pixel units.
      test_steps: number of steps of PGA.
      fresh: whether everything is measured again.
    """

    epsilons: tuple[float, ...]
    test_steps: int
    fresh: bool


def measure_network(
    each: Network, trained: Trained, examples: data.Dataset, settings: Settings
) -> Record:
    """Measures linearity and alignment of a network.

    Returns:
      "random" and "adversarial": "length", "deviation" and "sigma", each with "mean"
      and "standard_error" over the examples, by length of the perturbation from 0 on.
      "alignment": that of the perturbation with the dominant right singular vector of
      the features' Jacobian at x, by length.
    """
    identity = cache.fingerprint(each.config, trained.network, examples)
    keys = {
        "epsilons": list(settings.epsilons),
        "test_steps": settings.test_steps,
        **cache.network_settings(each.config, identity),
    }
    return cache.cached(
        each.directory / "iterations.json",
        keys,
        lambda: _measure(each, trained, examples, settings),
        fresh=settings.fresh,
    )


def _measure(
    each: Network, trained: Trained, examples: data.Dataset, settings: Settings
) -> Record:
    network = trained.network
    key = jax.random.key(each.seed)
    clean = np.asarray(data.to_float(examples.images))
    pga = measure.Pga(2.0, settings.test_steps, each.seed, _BATCH_SIZE)
    top = analysis.jacobian_norms(
        network.features,
        clean,
        key=key,
        num_steps=_SEARCH_STEPS,
        batch_size=_BATCH_SIZE,
    )
    points: dict[str, list[Record]] = {kind: [] for kind in _KINDS}
    aligned = []
    for place, epsilon in enumerate((0.0, *settings.epsilons)):
        delta = pga.perturbations(network, examples, epsilon)
        random = analysis.random_directions(delta, jax.random.fold_in(key, place))
        for kind, z in zip(_KINDS, (random, delta), strict=True):
            points[kind].append(_point(network.features, clean, z, key))
        if epsilon:
            found = _alignment(jnp.asarray(delta), jnp.asarray(top.right))
            aligned.append(np.asarray(found))
    # Where all features are dead there is no dominant vector.
    alive = (top.values > 0)[:, None]
    return {
        **{kind: _transposed(points[kind]) for kind in _KINDS},
        "alignment": {
            "epsilon": list(settings.epsilons),
            **records.mean_and_error(np.stack(aligned, axis=1), alive),
        },
    }


def _point(features: Any, clean: np.ndarray, z: np.ndarray, key: jax.Array) -> Record:
    linear = analysis.deviation_from_linearity(
        features, clean, z, batch_size=_BATCH_SIZE
    )
    norms = analysis.jacobian_norms(
        features, clean + z, key=key, num_steps=_SEARCH_STEPS, batch_size=_BATCH_SIZE
    )
    return {
        "length": records.mean_and_error(linear.length),
        "deviation": records.mean_and_error(linear.deviation),
        "sigma": records.mean_and_error(norms.values),
    }


def _transposed(points: Sequence[Record]) -> Record:
    """Returns the points of a curve as lists of means and of errors."""
    return {
        quantity: {
            part: [point[quantity][part] for point in points]
            for part in ("mean", "standard_error")
        }
        for quantity in points[0]
    }


def average(networks: Sequence[Record]) -> Record:
    """Averages the measurements of networks that differ in the seed.

    Args:
      networks: as :func:`measure_network` returns them, with "accuracy", the curve
        under L2 PGA, beside; at least one.
    """
    return {
        **{
            kind: {
                quantity: records.over_networks(
                    [each[kind][quantity] for each in networks]
                )
                for quantity in networks[0][kind]
            }
            for kind in _KINDS
        },
        **{
            name: {
                "epsilon": networks[0][name]["epsilon"],
                **records.over_networks([each[name] for each in networks]),
            }
            for name in ("alignment", "accuracy")
        },
    }


def random_alignment(examples: data.Dataset) -> float:
    """Returns the alignment to expect of a random perturbation."""
    return analysis.expected_random_alignment(examples.images[0].size)


def text(results: Mapping[str, Any]) -> str:
    """Returns the table, with a line on its errors before it.

    Args:
      results: the content of iterations.json.
    """
    over = {row["alignment"]["over"] for row in results["rows"].values()}
    errors = "Errors are standard errors over the networks of a row."
    if over == {"examples"}:
        errors = (
            "One network for each row: errors are standard errors over the images, and "
            "errors over networks are not known."
        )
    return (
        f"{results['data']}, {results['examples']} test images, "
        f"{results['test_examples']} for the accuracy; values at the longest "
        f"perturbation, of L2 length {results['epsilons'][-1]:g}. {errors}\n\n"
        f"{_table(results)}\n"
    )


def _table(results: Mapping[str, Any]) -> str:

    def last(*path: str) -> Any:
        def find(row: tables.Row) -> tuple[Any, Any]:
            curve = tables.find(row, path)
            return curve["mean"][-1], curve["standard_error"][-1]

        return find

    percent = tables.with_error("{:.1f}", times=100, unit=" %")
    number = tables.with_error()
    epsilon = f"{results['epsilons'][-1]:g}"
    columns = (
        Column("row", "row", label),
        Column("networks", lambda row: str(len(row["networks"]))),
        Column(f"PGA L2 {epsilon}", last("accuracy"), percent),
        Column("deviation, random z", last("random", "deviation"), number),
        Column("adversarial z", last("adversarial", "deviation"), number),
        Column("sigma(J(x + z))", last("adversarial", "sigma"), number),
        Column("alignment", last("alignment"), number),
    )
    return tables.table(tables.named(results["rows"], "row"), columns)
