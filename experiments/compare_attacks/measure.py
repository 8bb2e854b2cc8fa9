"""Runs the attacks of all libraries on one network, times them and judges them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import attack_specs
from experiments.common.records import Record
from experiments.compare_attacks import torch_cnn7
from experiments.compare_attacks.peers import Peer, Row
from opnorm import analysis, data, linalg, models

# Returns the attacked images, ``(N, H, W, C)`` float.
Attack = Callable[[], np.ndarray]

# An attack that takes this many seconds is not run a first time only to compile it.
_LONG = 60.0
_JUDGED_AT_ONCE = 128


class Setting(NamedTuple):
    """The network and the examples to attack, and the timing.

    Attributes:
      network: in opnorm.
      torch_network: its copy in PyTorch.
      test_set: the examples.
      batch_size: examples in a call.
      rounds: how often each attack is timed.
      seed: random seed of the attacks.
    """

    network: models.Network
    torch_network: Any
    test_set: data.Dataset
    batch_size: int
    rounds: int
    seed: int

    @property
    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each batch."""
        images, labels = self.test_set.images, self.test_set.labels
        starts = range(0, len(images), self.batch_size)
        rows = [slice(start, start + self.batch_size) for start in starts]
        return [(images[each], labels[each]) for each in rows]


def logit_difference(setting: Setting) -> float:
    """Returns the largest difference of the logits of both copies of the network.

    Raises:
      ValueError: if it is more than rounding.
    """
    import torch

    images = setting.test_set.images[:64]
    ours = np.asarray(setting.network(data.to_float(images)))
    with torch.no_grad():
        theirs = setting.torch_network(torch_cnn7.to_torch(images)).numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= 1e-4 * max(1.0, float(np.abs(ours).max())):
        raise ValueError(
            f"the copies of the network differ by {difference:.2e}; they must agree."
        )
    return difference


def measure(
    setting: Setting,
    row: Row,
    spec: attack_specs.AttackSpec,
    epsilon: float,
    *,
    every_step: bool,
) -> dict[str, Record]:
    """Runs the attacks of a row, and returns the results of each library.

    Args:
      setting: what is attacked.
      row: the attacks of the other libraries, and the norm.
      spec: the attack of opnorm.
      epsilon: the budget.
      every_step: whether opnorm also attacks like the loops of the other libraries:
        all images, right or wrong, for all steps.
    """
    attacks = {"opnorm": until_misclassified(setting, spec, row.p, epsilon)}
    if every_step:
        attacks["opnorm, every step"] = every_step_of(setting, spec, row.p, epsilon)
    for peer in row.peers:
        attacks[peer.library] = _peer(setting, peer, epsilon)
    return {
        library: _judge(setting, points, row.p, epsilon) | times
        for library, (points, times) in _take_turns(attacks, setting.rounds).items()
    }


def until_misclassified(
    setting: Setting, spec: attack_specs.AttackSpec, p: float, epsilon: float
) -> Attack:
    """Returns an attack of opnorm on all examples, as an evaluation makes it."""

    def run() -> np.ndarray:
        attacked = analysis.attack_examples(
            setting.network,
            setting.test_set.images,
            setting.test_set.labels,
            attack=attack_specs.factory(spec, p),
            epsilons=[epsilon] if attack_specs.has_budget(spec) else None,
            batch_size=setting.batch_size,
            key=jax.random.key(setting.seed),
            keep_points=True,
        )
        assert attacked.x_adv is not None
        return np.asarray(attacked.x_adv[0])

    return run


def every_step_of(
    setting: Setting, spec: attack_specs.AttackSpec, p: float, epsilon: float
) -> Attack:
    """Returns an attack of opnorm that takes every step on all examples."""
    attack = attack_specs.factory(spec, p)(epsilon)
    keys = jax.random.split(jax.random.key(setting.seed), len(setting.test_set))

    @jax.jit
    def compiled(f: models.Network, images: Any, labels: Any, keys: Any) -> Any:
        return attack(f, data.to_float(images), labels, keys)

    def run() -> np.ndarray:
        points: list[np.ndarray] = []
        for images, labels in setting.batches:
            done = sum(map(len, points))
            own = keys[done : done + len(images)]
            points.append(np.asarray(compiled(setting.network, images, labels, own)))
        return np.concatenate(points)

    return run


def _peer(setting: Setting, peer: Peer, epsilon: float) -> Attack:
    import torch

    compiled = jax.jit(lambda x: setting.network(x))

    def attack(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if peer.library == "foolbox-jax":
            given = (compiled, data.to_float(images), jnp.asarray(labels))
            return np.asarray(peer.run(*given, epsilon))
        targets = torch.from_numpy(labels.astype(np.int64))
        x = torch_cnn7.to_torch(images)
        found = peer.run(setting.torch_network, x, targets, epsilon)
        return np.asarray(found.detach().numpy()).transpose(0, 2, 3, 1)

    def run() -> np.ndarray:
        torch.manual_seed(setting.seed)
        return np.concatenate([attack(*batch) for batch in setting.batches])

    return run


def _take_turns(
    attacks: Mapping[str, Attack], rounds: int
) -> dict[str, tuple[np.ndarray, Record]]:
    """The points and times of each attack; rounds in turn see the same other load."""
    cold: dict[str, float] = {}
    points: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {library: [] for library in attacks}

    def run(library: str) -> float:
        began = time.monotonic()
        points[library] = attacks[library]()
        return time.monotonic() - began

    for library in attacks:
        # PyTorch compiles nothing, and its slowest attacks take long.
        if library.startswith("opnorm") or library == "foolbox-jax":
            cold[library] = run(library)
            if cold[library] > _LONG:
                # Compilation is a small part of it.
                seconds[library].append(cold[library])
    for number in range(rounds):
        for library, times in seconds.items():
            if len(times) <= number:
                times.append(run(library))
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


def _judge(setting: Setting, points: np.ndarray, p: float, epsilon: float) -> Record:
    """The effect of the returned points on the network, whichever library made them."""
    test_set, size = setting.test_set, _JUDGED_AT_ONCE
    starts = range(0, len(points), size)
    logits = [setting.network(jnp.asarray(points[i : i + size])) for i in starts]
    decisions = np.argmax(np.concatenate(list(map(np.asarray, logits))), axis=1)
    right = analysis.evaluate_accuracy(
        setting.network, test_set.images, test_set.labels
    ).correct
    wrong = decisions != test_set.labels
    clean = np.asarray(data.to_float(test_set.images))
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
