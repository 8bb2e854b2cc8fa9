r"""Attacks networks of other people with opnorm and three other libraries.

The first network is the one that the Adversarial Robustness Toolbox (ART) ships for its
tests, a small convolutional network for CIFAR-10. Its weights are four files named
``W_CONV2D_NO_MPOOL_CIFAR10.npy``, ``B_...``, ``W_DENSE_...`` and ``B_DENSE_...`` in
``utils/resources/models`` of ART's repository. The second network is trained here. It
has a ReLU on its logits, so that logits tie at zero and gradients vanish. All libraries
attack the same PyTorch module; opnorm does so through ``opnorm.torch.from_torch``::

    pip install -e '.[oracles]' adversarial-robustness-toolbox
    python scripts/compare_clients.py --weights=FOLDER --out=clients

The script writes results.json. An image counts as fallen where the module decides
wrongly at the returned point and the point is within the budget.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import opnorm
from opnorm import analysis, attacks, data, runs
from opnorm.torch import from_torch

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of ART's files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_EXAMPLES = flags.DEFINE_integer("examples", 100, "Number of test images.")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of the second network's training.")
_NETWORKS = flags.DEFINE_multi_enum(
    "network", ["shipped", "relu"], ["shipped", "relu"], "Networks to attack."
)
_ATTACKS = flags.DEFINE_list(
    "attacks", None, "First words of the attacks of the first network; all by default."
)
_NORMS = flags.DEFINE_multi_enum("norm", ["2", "inf"], ["2", "inf"], "Norms.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of training and attacks.")
_LIBRARIES = ("torch", "foolbox", "torchattacks", "adversarial-robustness-toolbox")

# Budgets, in [0, 1] pixel units.
EPSILONS = {2.0: 0.25, math.inf: 0.01}
# Rounding that lengths of other libraries are allowed.
_ROUNDING = 1e-4

# Results as the file holds them.
Record = dict[str, Any]
# Takes images (B, C, H, W), labels and a budget; returns attacked images.
Peer = Callable[["Client", float], np.ndarray]


class Client(NamedTuple):
    """A network to attack.

    Attributes:
      name: of the network.
      module: ``(B, 3, 32, 32)`` pixels in [0, 1] to ``(B, 10)`` logits.
      images: ``(N, 32, 32, 3)`` float32.
      labels: ``(N,)`` int64.
    """

    name: str
    module: Any
    images: np.ndarray
    labels: np.ndarray

    @property
    def tensors(self) -> tuple[Any, Any]:
        """The examples as PyTorch takes them."""
        import torch

        return torch.from_numpy(_channels_first(self.images)), torch.from_numpy(
            self.labels
        )

    def right(self, images: np.ndarray) -> np.ndarray:
        """Returns whether the module decides for the labels, ``(N,)`` bool."""
        import torch

        with torch.no_grad():
            logits = self.module(torch.from_numpy(_channels_first(images)))
        return np.asarray(logits.argmax(1).numpy() == self.labels)


class Row(NamedTuple):
    """One attack in every library.

    Attributes:
      title: its name and settings.
      p: exponent of the norm.
      ours: ``epsilon -> attack``.
      peers: the attacks of the other libraries.
    """

    title: str
    p: float
    ours: Callable[[Any], attacks.Attack]
    peers: Mapping[str, Peer]


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, 3, 1))


def _channels_last(images: Any) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(images), 1, 3))


def _foolbox(name: str, budget: bool = True, **options: Any) -> Peer:
    def run(client: Client, epsilon: float) -> np.ndarray:
        import foolbox

        model = foolbox.PyTorchModel(client.module, bounds=(0, 1))
        attack = getattr(foolbox.attacks, name)(**_resolve(options, epsilon))
        given = epsilon if budget else None
        return _channels_last(attack(model, *client.tensors, epsilons=given)[1])

    return run


def _torchattacks(name: str, **options: Any) -> Peer:
    def run(client: Client, epsilon: float) -> np.ndarray:
        import torchattacks

        attack = getattr(torchattacks, name)(
            client.module, **_resolve(options, epsilon)
        )
        return _channels_last(attack(*client.tensors).detach())

    return run


def _art(name: str, *, labelled: bool = True, **options: Any) -> Peer:
    def run(client: Client, epsilon: float) -> np.ndarray:
        import torch
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            client.module,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=(3, 32, 32),
            nb_classes=10,
            clip_values=(0.0, 1.0),
        )
        attack = getattr(evasion, name)(classifier, **_resolve(options, epsilon))
        labels = {"y": client.labels} if labelled else {}
        return _channels_last(attack.generate(_channels_first(client.images), **labels))

    return run


def _resolve(options: Mapping[str, Any], epsilon: float) -> Record:
    """Returns the options; those that are functions are functions of the budget."""
    return {
        name: value(epsilon) if callable(value) else value
        for name, value in options.items()
    }


def _given(epsilon: float) -> float:
    return epsilon


def _fifth(epsilon: float) -> float:
    return epsilon / 5


def _rows(p: float) -> list[Row]:
    """Returns the attacks of one norm."""
    name, norm = ("L2", 2) if p == 2 else ("Linf", np.inf)
    upper = "L2" if p == 2 else "LInf"
    art: Record = {"batch_size": 128, "verbose": False}
    rows = [
        Row(
            "PGD, 20 steps of epsilon / 5",
            p,
            lambda epsilon: attacks.pga(
                p=p,
                epsilon=epsilon,
                num_steps=20,
                step_size=epsilon / 5,
                random_start=False,
                skip_blocked=False,
            ),
            {
                "foolbox": _foolbox(
                    f"{name}ProjectedGradientDescentAttack",
                    steps=20,
                    abs_stepsize=_fifth,
                    random_start=False,
                ),
                "torchattacks": _torchattacks(
                    "PGDL2" if p == 2 else "PGD",
                    eps=_given,
                    alpha=_fifth,
                    steps=20,
                    random_start=False,
                ),
                "ART": _art(
                    "ProjectedGradientDescent",
                    norm=norm,
                    eps=_given,
                    eps_step=_fifth,
                    max_iter=20,
                    **art,
                ),
            },
        ),
        Row(
            "APGD on the cross-entropy, 100 steps",
            p,
            lambda epsilon: attacks.apgd(p=p, epsilon=epsilon),
            {
                "torchattacks": _torchattacks(
                    "APGD", norm=name, eps=_given, steps=100, loss="ce"
                ),
                "ART": _art(
                    "AutoProjectedGradientDescent",
                    norm=norm,
                    eps=_given,
                    eps_step=lambda epsilon: 2 * epsilon,
                    nb_random_init=1,
                    loss_type="cross_entropy",
                    **art,
                ),
            },
        ),
        Row(
            "FMN, 100 steps",
            p,
            lambda _: attacks.fast_minimum_norm(p=p),
            {"foolbox": _foolbox(f"{upper}FMNAttack", budget=False, steps=100)},
        ),
        Row(
            "Square, 1,000 queries",
            p,
            lambda epsilon: attacks.square(p=p, epsilon=epsilon, num_queries=1000),
            {
                "torchattacks": _torchattacks(
                    "Square", norm=name, eps=_given, n_queries=1000, resc_schedule=False
                ),
                "ART": _art(
                    "SquareAttack", norm=norm, eps=_given, max_iter=1000, **art
                ),
            },
        ),
        Row(
            "AutoAttack",
            p,
            lambda epsilon: attacks.auto_attack(p=p, epsilon=epsilon),
            {"torchattacks": _torchattacks("AutoAttack", norm=name, eps=_given)},
        ),
    ]
    if p != 2:
        return rows
    more = [
        Row(
            "DeepFool, 50 steps",
            p,
            lambda _: attacks.deepfool(),
            {
                "foolbox": _foolbox("L2DeepFoolAttack", budget=False, steps=50),
                "torchattacks": _torchattacks("DeepFool", steps=50, overshoot=0.02),
                "ART": _art(
                    "DeepFool", labelled=False, max_iter=50, epsilon=0.02, **art
                ),
            },
        ),
        Row(
            "DDN, 100 steps",
            p,
            lambda _: attacks.decoupled_direction(),
            {"foolbox": _foolbox("DDNAttack", budget=False, steps=100)},
        ),
        Row(
            "Carlini-Wagner, 5 constants of 50 steps",
            p,
            lambda _: attacks.carlini_wagner(num_searches=5, num_steps=50),
            {
                "foolbox": _foolbox(
                    "L2CarliniWagnerAttack",
                    budget=False,
                    binary_search_steps=5,
                    steps=50,
                ),
                "ART": _art(
                    "CarliniL2Method",
                    binary_search_steps=5,
                    max_iter=50,
                    initial_const=1e-3,
                    **art,
                ),
            },
        ),
    ]
    return [*rows, *more]


def read_shipped(folder: Path) -> Any:
    """Returns ART's test network for CIFAR-10 as a module.

    Raises:
      OSError: for a missing file.
    """
    import torch

    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 16, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 10)
    )
    with torch.no_grad():
        for layer, name in ((module[0], "CONV2D"), (module[3], "DENSE")):
            weight, bias = (
                np.load(
                    folder / f"{kind}_{name}_NO_MPOOL_CIFAR10.npy", allow_pickle=False
                )
                for kind in "WB"
            )
            layer.weight.copy_(torch.from_numpy(np.float32(weight)))
            layer.bias.copy_(torch.from_numpy(np.float32(bias)))
    return _frozen(module)


def train_with_relu_on_logits(epochs: int, seed: int) -> Any:
    """Trains a small network whose last layer is a ReLU on the logits."""
    import torch

    nn = torch.nn
    torch.manual_seed(seed)
    train = data.load(split="train")
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4096, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
        nn.ReLU(),
    )
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    images = torch.from_numpy(_channels_first(train.images.astype(np.float32) / 255))
    labels = torch.from_numpy(train.labels.astype(np.int64))
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimizer.step()
    return _frozen(module)


def _frozen(module: Any) -> Any:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def find(
    client: Client, make: Callable[[Any], attacks.Attack], epsilon: float
) -> tuple[analysis.Attacked, np.ndarray]:
    """Attacks with opnorm, as an evaluation does; returns the points, too."""
    budget = make(np.float32(epsilon)).budget
    found = analysis.attack_examples(
        from_torch(client.module),
        client.images,
        client.labels,
        attack=make,
        epsilons=[epsilon] if budget else None,
        key=jax.random.key(_SEED.value),
        keep_points=True,
    )
    assert found.x_adv is not None
    return found, found.x_adv[0]


def _points(
    client: Client, make: Callable[[Any], attacks.Attack], epsilon: float
) -> np.ndarray:
    return find(client, make, epsilon)[1]


def judge(client: Client, points: np.ndarray, p: float, epsilon: float) -> Record:
    """Returns the accuracy within the budget, and the lengths of the points."""
    moved = (points - client.images).reshape(len(points), -1)
    length = np.linalg.norm(moved, p, axis=1)
    standing = client.right(client.images)
    wrong = ~client.right(points)
    fallen = wrong & (length <= epsilon * (1 + _ROUNDING))
    return {
        "accuracy": float(np.mean(standing & ~fallen)),
        "misclassified": float(np.mean(wrong | ~standing)),
        "median_length": float(np.median(length[wrong & standing]))
        if np.any(wrong & standing)
        else None,
    }


def compare(client: Client, row: Row) -> Record:
    """Attacks a network with every library."""
    import torch

    epsilon = EPSILONS[row.p]
    points: dict[str, Callable[[], np.ndarray]] = {
        "opnorm": functools.partial(_points, client, row.ours, epsilon)
    }
    for library, peer in row.peers.items():
        points[library] = functools.partial(peer, client, epsilon)
    record: Record = {"attack": row.title, "p": row.p, "epsilon": epsilon}
    record["found"] = {}
    for library, run in points.items():
        torch.manual_seed(_SEED.value)
        # ART draws from NumPy's global generator.
        np.random.seed(_SEED.value)
        begun = time.monotonic()
        judged = judge(client, run(), row.p, epsilon)
        judged["seconds"] = time.monotonic() - begun
        record["found"][library] = judged
        print(client.name, row.title, row.p, library, judged, flush=True)
    return record


def inspect(client: Client, p: float, record: Record, save: Callable[[], None]) -> None:
    """Tells whether gradients of a network with a ReLU on its logits are masked.

    Attacks of the layer before the ReLU see all gradients; their points are judged by
    the whole network.

    Args:
      client: the network and the images.
      p: exponent of the norm.
      record: takes the results.
      save: called when a part of them is there.
    """
    import torch

    epsilon = EPSILONS[p]
    before = client._replace(module=client.module[:-1].eval())
    with torch.no_grad():
        logits = client.module(client.tensors[0]).numpy()
    largest = np.sort(logits, axis=1)
    pga = functools.partial(
        attacks.pga, p=p, num_steps=100, loss="margin", keep="success"
    )
    ensemble = functools.partial(attacks.auto_attack, p=p)
    given: dict[str, tuple[Client, Callable[..., attacks.Attack]]] = {
        "PGA-100 on the cross-entropy": (
            client,
            functools.partial(pga, loss="cross_entropy"),
        ),
        "PGA-100 on the margin": (client, pga),
        "AutoAttack": (client, ensemble),
        "PGA-100 on the margin before the ReLU": (before, pga),
        "AutoAttack before the ReLU": (before, ensemble),
    }
    record |= {
        "p": p,
        "epsilon": epsilon,
        "clean": float(client.right(client.images).mean()),
        "tied_at_the_top": float(np.mean(largest[:, -1] == largest[:, -2])),
        "zero_logits": float(np.mean(logits == 0)),
        "found": {},
    }
    for name, (attacked, attack) in given.items():

        def make(
            e: Any, attack: Callable[..., attacks.Attack] = attack
        ) -> attacks.Attack:
            return attack(epsilon=e)

        points = _points(attacked, make, epsilon)
        record["found"][name] = judge(client, points, p, epsilon)
        print(client.name, name, p, record["found"][name], flush=True)
        save()
    checks = analysis.sanity_checks(
        from_torch(client.module),
        client.images,
        client.labels,
        p=p,
        epsilon=epsilon,
        key=jax.random.key(_SEED.value),
    )
    print(*(c for c in checks if not c.passed), sep="\n", flush=True)
    record["checks"] = [check._asdict() for check in checks]
    save()
    record["targeted"] = reach(client, p, epsilon)
    save()


def reach(client: Client, p: float, epsilon: float) -> Record:
    """Reaches the second likeliest class by AutoAttack, with and without a success.

    A loss alone counts no ties. With ``success=attacks.reached`` a tie counts where the
    network decides for the target.
    """
    import torch

    f = from_torch(client.module)
    targets = np.asarray(
        analysis.choose_targets(f, client.images, client.labels, "likeliest")
    ).astype(np.int64)
    record: Record = {}
    for name, success in (("loss", None), ("loss and success", attacks.reached)):

        def make(epsilon: Any, success: Any = success) -> attacks.Attack:
            return attacks.with_criterion(
                attacks.auto_attack(p=p, epsilon=epsilon),
                loss=attacks.lead,
                success=success,
            )

        found, points = find(client._replace(labels=targets), make, epsilon)
        with torch.no_grad():
            logits = client.module(torch.from_numpy(_channels_first(points))).numpy()
        hit = logits.argmax(1) == targets
        rivals = logits.copy()
        rivals[np.arange(len(targets)), targets] = -np.inf
        tied = rivals.max(1) == logits[np.arange(len(targets)), targets]
        record[name] = {
            "reached": float(found.success.mean()),
            "ties": float(np.mean(found.success[0] & hit & tied)),
            "by_stage": np.bincount(
                found.stage[0][found.success[0]] + 1, minlength=5
            ).tolist(),
        }
        print(client.name, "targeted", p, name, record[name], flush=True)
    return record


def main(arguments: list[str]) -> None:
    """Attacks both networks and writes the results."""
    del arguments
    import torch

    torch.set_num_threads(1)
    begun, revision = time.monotonic(), runs.git_revision()
    test = data.load(split="test", limit=_EXAMPLES.value)
    images = test.images.astype(np.float32) / 255
    labels = test.labels.astype(np.int64)
    shipped = read_shipped(Path(_WEIGHTS.value))
    own = (
        np.asarray(from_torch(shipped)(jnp.asarray(images))).argmax(1).astype(np.int64)
    )
    results: Record = {
        "data": test.description,
        "examples": len(images),
        "seed": _SEED.value,
        "epochs": _EPOCHS.value,
        "shipped_accuracy": float(np.mean(own == labels)),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
        "opnorm": opnorm.__version__,
        "environment": runs.environment(),
        "git_revision": revision,
        "shipped": [],
        "relu": [],
    }
    folder = Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        """Writes what is there, since the whole takes long."""
        results["seconds"] = time.monotonic() - begun
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    norms = [float(name) for name in _NORMS.value]
    if "shipped" in _NETWORKS.value:
        client = Client("shipped with ART", shipped, images, own)
        for row in (row for p in norms for row in _rows(p)):
            first = row.title.split()[0].rstrip(",")
            if _ATTACKS.value is None or first in _ATTACKS.value:
                results["shipped"].append(compare(client, row))
                save()
    if "relu" in _NETWORKS.value:
        dead = train_with_relu_on_logits(_EPOCHS.value, _SEED.value)
        client = Client("ReLU on the logits", dead, images, labels)
        for p in norms:
            results["relu"].append({})
            inspect(client, p, results["relu"][-1], save)
    print(f"written to {folder}")


if __name__ == "__main__":
    app.run(main)
