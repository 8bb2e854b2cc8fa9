"""Attacks through JAX and those of other libraries, on one network in PyTorch.

``pip install 'opnorm[oracles]'``; without it these are skipped.
"""

import functools
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import opnorm
from opnorm import attacks, data

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
torchattacks = pytest.importorskip("torchattacks")
nn = torch.nn
IMAGES, STEPS = 200, 20


class Setting(NamedTuple):
    """A network in PyTorch, images (B, H, W, C), and its own decisions."""

    module: nn.Module
    x: np.ndarray
    labels: np.ndarray

    def tensors(self):
        images = np.ascontiguousarray(np.moveaxis(self.x, 3, 1))
        return torch.tensor(images), torch.tensor(self.labels)

    def accuracy(self, attacked, p, epsilon):
        """The accuracy on attacked images (B, H, W, C) within the budget."""
        moved = np.linalg.norm((attacked - self.x).reshape(len(self.x), -1), p, axis=1)
        with torch.no_grad():
            found = self.module(torch.tensor(np.moveaxis(attacked, 3, 1))).argmax(1)
        broken = (found.numpy() != self.labels) & (moved <= epsilon * (1 + 1e-4))
        return 1 - broken.mean()


@functools.cache
def setting():
    """One convolution and one linear layer, trained for a few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = (data.load(split=split) for split in ("train", "test"))
    module = nn.Sequential(
        nn.Conv2d(3, 16, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 10)
    )
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    images, labels = (torch.tensor(a) for a in (train.images, train.labels))
    images = images.permute(0, 3, 1, 2).float() / 255
    for step in range(100):
        rows = torch.arange(64 * step, 64 * step + 64) % len(images)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(images[rows]), labels[rows].long())
        loss.backward()
        optimizer.step()
    module.eval()
    x = np.float32(test.images[:IMAGES]) / 255
    f = opnorm.torch.from_torch(module)
    return Setting(module, x, np.asarray(f(x)).argmax(1))


def ours(attack):
    given = setting()
    f = opnorm.torch.from_torch(given.module)
    return np.asarray(attack(f, given.x, given.labels, jax.random.key(0)))


def by_foolbox(name, epsilon, **options):
    given = setting()
    model = foolbox.PyTorchModel(given.module, bounds=(0, 1))
    attack = getattr(foolbox.attacks, name)(**options)
    _, clipped, _ = attack(model, *given.tensors(), epsilons=epsilon)
    return np.moveaxis(clipped.numpy(), 1, 3)


def by_torchattacks(name, **options):
    given = setting()
    attacked = getattr(torchattacks, name)(given.module, **options)(*given.tensors())
    return np.moveaxis(attacked.detach().numpy(), 1, 3)


def pga(p, epsilon):
    # The other libraries begin at the image here, follow the whole gradient at a face
    # of the box, and return the last point.
    return attacks.pga(
        p=p,
        epsilon=epsilon,
        num_steps=STEPS,
        step_size=epsilon / 5,
        random_start=False,
        keep="last",
        skip_blocked=False,
    )


@pytest.mark.parametrize(("p", "epsilon"), [(2, 0.3), (math.inf, 0.006)])
def test_projected_gradients_fool_as_many(p, epsilon):
    given = setting()
    step, kind = epsilon / 5, "L2" if p == 2 else "Linf"
    found = ours(pga(p, epsilon))
    theirs = by_foolbox(
        f"{kind}ProjectedGradientDescentAttack",
        epsilon,
        steps=STEPS,
        abs_stepsize=step,
        random_start=False,
    )
    others = by_torchattacks(
        "PGDL2" if p == 2 else "PGD",
        eps=epsilon,
        alpha=step,
        steps=STEPS,
        random_start=False,
    )
    accuracies = [given.accuracy(a, p, epsilon) for a in (found, theirs, others)]
    assert 0.2 < accuracies[0] < 0.8
    assert max(accuracies) - min(accuracies) <= 0.01


# Our attack, foolbox's, and its options.
NEAREST = {
    "decoupled_direction": ("DDNAttack", {"steps": 50}),
    "deepfool": ("L2DeepFoolAttack", {"steps": 50, "loss": "logits"}),
}


@pytest.mark.parametrize("name", NEAREST)
def test_nearest_points_fool_as_many_at_each_budget(name):
    given = setting()
    kind, options = NEAREST[name]
    ours_too = attacks.make(name, p=2, num_steps=50)
    found, theirs = ours(ours_too), by_foolbox(kind, None, **options)
    for epsilon in (0.2, 0.3, 0.4):
        accuracies = [given.accuracy(a, 2, epsilon) for a in (found, theirs)]
        assert 0.02 < accuracies[0] < 0.98
        assert abs(accuracies[0] - accuracies[1]) <= 0.01


@pytest.mark.parametrize(("p", "epsilon"), [(2, 0.3), (math.inf, 0.006)])
def test_automatic_steps_fool_as_many(p, epsilon):
    given = setting()
    found = ours(attacks.apgd(p=p, epsilon=epsilon, num_steps=50))
    theirs = by_torchattacks(
        "APGD", norm="L2" if p == 2 else "Linf", eps=epsilon, steps=50, loss="ce"
    )
    accuracies = [given.accuracy(a, p, epsilon) for a in (found, theirs)]
    assert 0.2 < accuracies[0] < 0.8
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


@pytest.mark.parametrize(("column", "library"), [(1, foolbox), (2, torchattacks)])
def test_the_page_of_attacks_names_attacks_that_exist(column, library):
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    rows = page.split("## Names in other libraries")[1].split("\n\n")[1].splitlines()
    known = library.attacks if library is foolbox else library
    names = [
        n
        for row in rows[2:]
        for n in re.findall(r"`(\w+)`", row.split("|")[column + 1])
    ]
    assert len(names) > 10
    assert [name for name in names if not hasattr(known, name)] == []
