r"""Compares opnorm's attacks with foolbox, torchattacks and plain PyTorch.

  pip install -e '.[oracles]'
  python -m experiments.compare_attacks --run=runs/snr
  python -m experiments.compare_attacks --run=runs/snr --attacks=pgd_l2,square_l2

The same network (a CNN7, its weights copied to PyTorch), the same pictures and budgets,
each library with the settings of the table below. opnorm attacks as an evaluation does:
only pictures that are classified correctly, until they fall. For each it reports the
accuracy that is left and the seconds it took, compilation apart: medians over rounds in
which the libraries take turns. Accuracy is judged by opnorm's copy of the network on
the points that were returned, within the budget. Writes comparison.json and table.md
into --out.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import attack_specs, cli, jobs
from experiments.compare_attacks import torch_cnn7
from experiments.compare_attacks.peers import ROWS, Peer
from opnorm import analysis, data, linalg, models, runs, training

_RUN = flags.DEFINE_string("run", None, "run directory of a CNN7 (required)")
_OUT = flags.DEFINE_string("out", None, "where to write; default RUN/comparison")
_EXAMPLES = flags.DEFINE_integer("examples", 512, "test pictures")
_ATTACKS = flags.DEFINE_list("attacks", None, "rows of the table; by default all")
_EPSILON = flags.DEFINE_float("epsilon", 0.5, "L2 budget, in [0, 1] pixel units")
_EPSILON_INF = flags.DEFINE_float("epsilon_inf", 4 / 255, "Linf budget")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "examples per call")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "how often each attack is timed")
_SEED = flags.DEFINE_integer("seed", 0, "of random numbers")


# An attack that takes this many seconds is not run a first time only to compile it.
_LONG = 60.0
_LIBRARIES = ("torch", "torchattacks", "foolbox")


def main() -> None:
    """Runs every row, writes results, prints the table."""
    if not _RUN.value:
        raise ValueError("run is not given; it is the run directory of a CNN7.")
    names = _ATTACKS.value or list(ROWS)
    for name in names:
        if name not in ROWS:
            raise ValueError(f"attacks has {name!r}; it may be {', '.join(ROWS)}.")
    for name, value in (
        ("examples", _EXAMPLES.value),
        ("batch_size", _BATCH_SIZE.value),
        ("rounds", _ROUNDS.value),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    specs = {name: attack_specs.parse_attack(ROWS[name].ours) for name in names}
    torch, *_ = (cli.import_optional(name, "oracles") for name in _LIBRARIES)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = training.load_run(_RUN.value)
    config, network = run.config, run.network
    test_set = data.load(
        jobs.dataset_name(None, config),
        split="test",
        limit=_EXAMPLES.value,
        image_size=training.image_size(config),
    )
    torch_network = torch_cnn7.build(network.params, network.batch_stats)
    difference = _check_networks(network, torch_network, test_set)
    runs.RunDirectory.for_results(_OUT.value or _RUN.value)
    out = cli.hold(runs.RunDirectory(_OUT.value or f"{_RUN.value}/comparison"))

    rows: list[dict[str, Any]] = []
    for name in names:
        row, spec = ROWS[name], specs[name]
        epsilon = _EPSILON.value if row.p == 2 else _EPSILON_INF.value
        attacks = {"opnorm": _ours(network, test_set, spec, row.p, epsilon)}
        if name.startswith("pgd"):
            # Like PyTorch's loop: all images, right or wrong, and all steps.
            attacks["opnorm, every step"] = _every_step(
                network, test_set, spec, row.p, epsilon
            )
        for peer in row.peers:
            attacks[peer.library] = _peer(
                network, torch_network, test_set, peer, epsilon
            )
        found = {
            library: _judge(network, test_set, points, row.p, epsilon) | times
            for library, (points, times) in _take_turns(attacks).items()
        }
        rows.append({"attack": name, "p": row.p, "epsilon": epsilon, "found": found})
        print(_table(rows[-1:]), flush=True)
        out.write_json(
            "comparison.json",
            {
                "run": _RUN.value,
                "method": config.method,
                "data": test_set.description,
                "examples": len(test_set),
                "batch_size": _BATCH_SIZE.value,
                "rounds": _ROUNDS.value,
                "seed": _SEED.value,
                "largest_logit_difference": difference,
                "torch_threads": torch.get_num_threads(),
                "versions": cli.versions(*_LIBRARIES),
                "environment": runs.environment(),
                "git_revision": runs.git_revision(),
                "rows": rows,
            },
        )
        out.write_text("table.md", _table(rows) + "\n")
    print(f"written to {out.path}")


def _check_networks(
    network: models.Network, torch_network: Any, test_set: data.Dataset
) -> float:
    """The largest difference of the copies' logits; refuses copies that differ."""
    import torch

    images = test_set.images[:64]
    ours = np.asarray(network(data.to_float(images)))
    with torch.no_grad():
        theirs = torch_network(torch_cnn7.to_torch(images)).numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= 1e-4 * max(1.0, float(np.abs(ours).max())):
        raise ValueError(
            f"the copies of the network differ by {difference:.2e}; they must agree."
        )
    return difference


def _ours(
    network: models.Network,
    test_set: data.Dataset,
    spec: attack_specs.AttackSpec,
    p: float,
    epsilon: float,
) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        attacked = analysis.attack_examples(
            network,
            test_set.images,
            test_set.labels,
            attack=attack_specs.factory(spec, p),
            epsilons=[epsilon] if attack_specs.has_budget(spec) else None,
            batch_size=_BATCH_SIZE.value,
            key=jax.random.key(_SEED.value),
            keep_points=True,
        )
        assert attacked.x_adv is not None
        return attacked.x_adv[0]

    return run


def _every_step(
    network: models.Network,
    test_set: data.Dataset,
    spec: attack_specs.AttackSpec,
    p: float,
    epsilon: float,
) -> Callable[[], np.ndarray]:
    attack = attack_specs.factory(spec, p)(epsilon)
    keys = jax.random.split(jax.random.key(_SEED.value), len(test_set))

    @jax.jit
    def compiled(f: models.Network, images: Any, labels: Any, keys: Any) -> Any:
        return attack(f, data.to_float(images), labels, keys)

    def run() -> np.ndarray:
        points = []
        for rows in _batches(test_set):
            given = (test_set.images[rows], test_set.labels[rows], keys[rows])
            points.append(np.asarray(compiled(network, *given)))
        return np.concatenate(points)

    return run


def _peer(
    network: models.Network,
    torch_network: Any,
    test_set: data.Dataset,
    peer: Peer,
    epsilon: float,
) -> Callable[[], np.ndarray]:
    import torch

    compiled = jax.jit(lambda x: network(x))

    def run() -> np.ndarray:
        torch.manual_seed(_SEED.value)
        points = []
        for rows in _batches(test_set):
            images, labels = test_set.images[rows], test_set.labels[rows]
            if peer.library == "foolbox-jax":
                given = (compiled, data.to_float(images), jnp.asarray(labels))
                points.append(np.asarray(peer.run(*given, epsilon)))
                continue
            targets = torch.from_numpy(labels.astype(np.int64))
            found = peer.run(
                torch_network, torch_cnn7.to_torch(images), targets, epsilon
            )
            points.append(found.detach().numpy().transpose(0, 2, 3, 1))
        return np.concatenate(points)

    return run


def _batches(test_set: data.Dataset) -> list[slice]:
    size = _BATCH_SIZE.value
    return [slice(start, start + size) for start in range(0, len(test_set), size)]


def _take_turns(
    attacks: dict[str, Callable[[], np.ndarray]],
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Each attack's points and times; rounds in turn share the machine's moods."""
    cold: dict[str, float] = {}
    points: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {library: [] for library in attacks}
    for library, run in attacks.items():
        # PyTorch compiles nothing, and its slowest attacks take long.
        if library.startswith("opnorm") or library == "foolbox-jax":
            began = time.monotonic()
            found = run()
            cold[library] = time.monotonic() - began
            if cold[library] > _LONG:
                # Compilation is a small part of it.
                points[library] = found
                seconds[library].append(cold[library])
    for number in range(_ROUNDS.value):
        for library, run in attacks.items():
            if len(seconds[library]) > number:
                continue
            began = time.monotonic()
            points[library] = run()
            seconds[library].append(time.monotonic() - began)
    return {
        library: (
            points[library],
            {
                "seconds": statistics.median(times),
                "seconds_of_rounds": times,
                "examples_per_second": len(points[library]) / statistics.median(times),
                "seconds_with_compilation": cold.get(library),
                "times_opnorm": statistics.median(
                    t / ours for t, ours in zip(times, seconds["opnorm"], strict=True)
                ),
            },
        )
        for library, times in seconds.items()
    }


def _judge(
    network: models.Network,
    test_set: data.Dataset,
    points: np.ndarray,
    p: float,
    epsilon: float,
) -> dict[str, Any]:
    """What the returned points do to the network, wherever they come from."""
    clean = np.asarray(data.to_float(test_set.images))
    logits = np.concatenate(
        [
            np.asarray(network(jnp.asarray(points[i : i + 128])))
            for i in range(0, len(points), 128)
        ]
    )
    right = analysis.evaluate_accuracy(
        network, test_set.images, test_set.labels
    ).correct
    wrong = np.argmax(logits, axis=1) != test_set.labels
    distance = np.asarray(linalg.norm(jnp.asarray(points - clean), p))
    fallen = wrong & (distance <= epsilon * (1 + 1e-4))
    hit = wrong & right
    return {
        "accuracy": float(np.mean(right & ~fallen)),
        "found": float(np.mean(wrong | ~right)),
        "mean_distance": float(distance[hit].mean()) if hit.any() else None,
        "median_distance": float(np.median(distance[hit])) if hit.any() else None,
        "largest_distance": float(distance.max()),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        ours = 100 * row["found"]["opnorm"]["accuracy"]
        for library, found in row["found"].items():
            mean, median = found["mean_distance"], found["median_distance"]
            lines.append(
                {
                    "attack": f"{row['attack']}, eps {row['epsilon']:.3g}",
                    "library": library,
                    "accuracy": f"{found['accuracy']:.1%}",
                    "difference": f"{ours - 100 * found['accuracy']:+.1f}",
                    "found": f"{found['found']:.1%}",
                    "mean distance": "-" if mean is None else f"{mean:.4g}",
                    "median": "-" if median is None else f"{median:.4g}",
                    "images/s": f"{found['examples_per_second']:.1f}",
                    "opnorm is faster by": f"{found['times_opnorm']:.2f}x",
                }
            )
    return cli.table(lines)


if __name__ == "__main__":
    cli.run(main)
