r"""Finds one perturbation that fools a network on many images, from operator norms.

  opnorm universal --run=runs/standard
  opnorm universal --run=runs/standard --run=runs/snr --out=runs/both
  opnorm universal --run=runs/standard --p=2 --q=2 --epsilons=0.5,1,2
  opnorm universal --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --out=runs/mine

The perturbation is epsilon times the top (p, q) singular vector v of the stacked
Jacobians S of --fit_examples images. It is measured on these and on other images:

- the fooling rate, the fraction of images whose decision changes, against epsilon,
  beside noise of the same length (the entries of v, shuffled and with random signs, one
  draw for each image) and beside PGA on the decision of each image;
- the change of the outputs in the q-norm against epsilon ||S v||_q, the promise of the
  linear theory, which holds to first order in epsilon and without the box [0, 1];
- the largest fooling rate that the change of the logits allows: by the measured change,
  which no perturbation can exceed, and by the promised change, which holds to first
  order.

Perturbed images are clipped to [0, 1]. The sign of v, which the norm leaves open, is
that with the higher fooling rate on the fitted images. Writes results.json,
table.md, perturbations.npz (v of each network) and figures.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import (
    cli,
    comparison,
    figures,
    measure,
    options,
    records,
    run_figures,
    seeds,
    tables,
)
from experiments.common.records import Record
from experiments.common.tables import Column
from opnorm import analysis, data, runs

_FOLDER = "universal"
comparison.define_flags(_FOLDER)
_P = options.define_number("p", math.inf, "norm of the perturbation")
_Q = options.define_number("q", 10.0, "norm of the change of the outputs")
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    None,
    "lengths of the perturbation, in [0, 1] pixel units; by default 2/255 to 16/255 "
    "for p = inf, 0.5 to 4 for other norms",
)
_FIT = flags.DEFINE_integer(
    "fit_examples", 64, "number of images that the perturbation is computed from"
)
_LAYER = flags.DEFINE_enum(
    "layer",
    "logits",
    ["logits", "features"],
    "outputs whose Jacobian gives the perturbation",
)
_SEARCH_STEPS = flags.DEFINE_integer("search_steps", 20, "steps of the power method")
_RESTARTS = flags.DEFINE_integer("restarts", 3, "random starts of the power method")

_DEFAULTS = ("2/255", "4/255", "8/255", "16/255"), ("0.5", "1", "2", "4")


def main() -> None:
    """Measures every network, writes results and figures."""
    options.check_at_least(1, _FIT, _SEARCH_STEPS, _RESTARTS)
    for name, value in (("p", _P.value), ("q", _Q.value)):
        if not value >= 1:
            raise ValueError(f"{name} is {value}; it must be in [1, inf].")
    default = _DEFAULTS[0] if _P.value == math.inf else _DEFAULTS[1]
    epsilons = options.parse_lengths("epsilons", _EPSILONS.value or list(default))
    count = flags.FLAGS.examples
    compared = comparison.open_runs(_FOLDER, _FIT.value + count)
    if _LAYER.value == "features":
        comparison.say_which_have_no_features(compared)
    examples = compared.examples
    if len(examples) < _FIT.value + 2:
        raise ValueError(
            f"fit_examples is {_FIT.value}, and there are {len(examples)} images; 2 or "
            "more must be left to measure on."
        )
    fit = examples.slice(0, _FIT.value)
    test = examples.slice(_FIT.value, None)
    results: Record = {
        **comparison.card(compared, len(test)),
        "fit_examples": len(fit),
        "norm": measure.norm_name(_P.value),
        "p": _P.value,
        "q": _Q.value,
        "layer": _LAYER.value,
        "epsilon": epsilons,
        "networks": {},
    }
    directions: dict[str, np.ndarray] = {}
    for name, members in compared.groups.items():
        found = []
        for network in members:
            measured, direction = _measure(network, fit, test, epsilons)
            found.append(measured)
            directions[network.name] = direction
        results["networks"][name] = seeds.average(found)
    text = _text(results)
    compared.out.write_json("results.json", results)
    compared.out.write_text("table.md", text)
    runs.write_arrays(compared.out.path / "perturbations.npz", directions)
    # A row of a table is no image.
    shown = directions if len(compared.examples.image_shape) == 3 else {}
    figures.save(compared.out, run_figures.draw_universal(results, shown))
    records.report(compared.out, text)


def _measure(
    network: comparison.NamedNetwork,
    fit: data.Dataset,
    test: data.Dataset,
    epsilons: list[float],
) -> tuple[Record, np.ndarray]:
    """Returns the measurements of one network, and its perturbation of length 1."""
    given = flags.FLAGS
    key = jax.random.key(given.seed)
    outputs = network.features if _LAYER.value == "features" else network.f
    along = {"epsilons": epsilons, "batch_size": given.batch_size}
    found = analysis.universal_direction(
        outputs,
        fit.images,
        p=_P.value,
        q=_Q.value,
        num_steps=_SEARCH_STEPS.value,
        num_restarts=_RESTARTS.value,
        batch_size=given.batch_size,
        key=key,
    )
    both = [
        analysis.fooling(network.f, fit.images, sign * found.direction, **along)
        for sign in (1, -1)
    ]
    rates = [each.fooled.mean() for each in both]
    fitted = both[int(np.argmax(rates))]
    direction = found.direction * (1 - 2 * int(np.argmax(rates)))
    decided = analysis.fooling(network.f, test.images, direction, **along)
    noise = analysis.shuffled_directions(direction, len(test), key)
    pga = measure.Pga(_P.value, given.num_steps, given.seed, given.batch_size)
    attacked = analysis.robust_accuracy(
        network.f,
        test.images,
        decided.decision,
        attack=pga.attack,
        epsilons=epsilons,
        batch_size=given.batch_size,
        key=key,
    )
    noised = analysis.fooling(network.f, test.images, noise, **along)
    response = {"q": _Q.value, **along}
    logits = analysis.perturbation_response(
        network.f, test.images, direction, **response
    )
    inner = analysis.perturbation_response(outputs, fit.images, direction, **response)
    fooled = {
        "universal": decided.fooled,
        "fitted": fitted.fooled,
        "noise": noised.fooled,
        "per_image": np.stack([~point.correct for point in attacked]),
    }
    total = {
        "promised": np.array(epsilons) * _norm(logits.slope[None]),
        "measured": _norm(logits.change),
    }
    return {
        "singular_value": found.norm,
        "residual": found.residual,
        "change": {
            "promised": (np.array(epsilons) * found.norm).tolist(),
            "measured": _norm(inner.change).tolist(),
        },
        "fooling": {
            kind: records.mean_and_error(rows.T) for kind, rows in fooled.items()
        },
        "bound": {
            kind: analysis.fooling_bound(decided.margin, change, _Q.value).tolist()
            for kind, change in total.items()
        },
    }, direction


def _norm(rows: np.ndarray) -> np.ndarray:
    """Returns the q-norms of the changes of all images together, ``(E,)``."""
    found: np.ndarray = np.linalg.norm(np.asarray(rows, np.float64), _Q.value, axis=1)
    return found


def _text(results: Mapping[str, Any]) -> str:
    """Returns the results as Markdown."""
    epsilons = results["epsilon"]
    rows = []
    for name, network in results["networks"].items():
        rows += [
            {"name": figures.label(name), "kind": words, **network["fooling"][kind]}
            for kind, words in run_figures.KINDS.items()
        ]
        unknown = [None] * len(epsilons)
        rows += [
            {
                "name": figures.label(name),
                "kind": words,
                "mean": network["bound"][kind],
                "standard_error": unknown,
            }
            for kind, words in run_figures.BOUNDS.items()
        ]
    percent = tables.with_error("{:.1f}", times=100, unit=" %", alone=True)
    columns = [
        Column("network", "name"),
        Column("fooling rate at epsilon", "kind"),
        *(Column(f"{e:.4g}", _at(i), percent) for i, e in enumerate(epsilons)),
    ]
    number = tables.number()
    changes = [
        {"name": figures.label(name), **network}
        for name, network in results["networks"].items()
    ]
    theory = [
        Column("network", "name"),
        Column("norm of the stacked Jacobians", "singular_value", number),
        Column("residual", "residual", number),
        Column("promised change", ("change", "promised"), tables.numbers()),
        Column("measured change", ("change", "measured"), tables.numbers()),
    ]
    return (
        f"# Universal perturbations\n\n{results['data']}; {results['norm']}, q = "
        f"{results['q']:g}, {results['layer']}; computed from "
        f"{results['fit_examples']} images, measured on {results['examples']} others; "
        f"revision {results['git_revision']}.\n\n"
        f"{tables.table(rows, columns)}\n\n"
        "Changes are q-norms over the images that the perturbation was computed from, "
        "at each epsilon. The promise holds to first order and without the box.\n\n"
        f"{tables.table(changes, theory)}\n\n± {seeds.bands(results)}\n"
    )


def _at(place: int) -> Any:
    """Mean and standard error at one place of a curve."""
    return lambda row: (row["mean"][place], row["standard_error"][place])


if __name__ == "__main__":
    cli.run(main)
