"""The tasks of the part "peers" in PyTorch and in the libraries of attacks on it.

JAX is not imported here, since its memory would count as PyTorch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark import tasks
from experiments.benchmark.tasks import Task
from experiments.common import cli
from experiments.compare_attacks import torch_cnn7
from experiments.compare_attacks.peers import ROWS, plain_pgd

# The default of ``Config``.
_LEARNING_RATE = 2e-3
# Places of padding before a random crop.
_PAD = 4


def build(task: Task) -> Callable[[], Any]:
    """Returns the function of a task.

    Raises:
      MissingPackage: if PyTorch or the library of the task is not installed.
    """
    torch = cli.import_optional("torch", "oracles")
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    if task.name in (tasks.STANDARD, tasks.ADVERSARIAL):
        return _train_step(task)
    if task.name == tasks.JACOBIAN:
        return _dense_jacobian(task)
    return _attack(task)


def _network(task: Task, given: dict[str, Any]) -> Any:
    network = torch_cnn7.build(given["params"], given["batch_stats"])
    return network.to(memory_format=_layout(task))


def _layout(task: Task) -> Any:
    import torch

    return torch.channels_last if task.channels_last else torch.contiguous_format


def _images(task: Task, images: np.ndarray) -> Any:
    return torch_cnn7.to_torch(images).contiguous(memory_format=_layout(task))


def _labels(labels: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(labels.astype(np.int64))


def _train_step(task: Task) -> Callable[[], Any]:
    import torch

    given = task.load()
    network, labels = _network(task, given), _labels(given["labels"])
    pixels = torch.from_numpy(given["images"].transpose(0, 3, 1, 2).copy())
    adversarial = task.name == tasks.ADVERSARIAL
    epsilon, steps = tasks.EPSILON, tasks.ATTACK_STEPS
    attack = plain_pgd(2.0, steps, 2 * epsilon / steps)
    _set_training(network, True)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    loss = torch.nn.CrossEntropyLoss()

    def step() -> float:
        x = augment(pixels.float() / 255).contiguous(memory_format=_layout(task))
        if adversarial:
            # As in opnorm, the attack sees the network in inference mode.
            _set_training(network, False)
            perturbed = attack.run(network, x, labels, epsilon)
            _set_training(network, True)
            x = torch.cat([x, perturbed.detach()])
        logits = network(x)
        parts = logits.split(len(labels))
        total = sum(loss(part, labels) for part in parts)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


def _set_training(network: Any, training: bool) -> None:
    network.train(training)
    for parameter in network.parameters():
        parameter.requires_grad_(training)


def augment(x: Any) -> Any:
    """Crops each image at random after padding with zeros, and mirrors half of them.

    Args:
      x: ``(B, C, H, W)``.
    """
    import torch

    count, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (_PAD,) * 4)
    rows, columns = torch.randint(0, 2 * _PAD + 1, (2, count)).tolist()
    crops = [
        padded[index, :, row : row + height, column : column + width]
        for index, (row, column) in enumerate(zip(rows, columns, strict=True))
    ]
    found = torch.stack(crops)
    mirrored = torch.rand(count) < 0.5
    found[mirrored] = found[mirrored].flip(3)
    return found


def _dense_jacobian(task: Task) -> Callable[[], Any]:
    import torch

    given = task.load()
    network, x = _network(task, given), _images(task, given["images"])

    def jacobian() -> Any:
        image = x.detach().requires_grad_(True)
        # Rows of the batch do not depend on each other: the gradient of a sum over the
        # batch has the gradients of all examples.
        totals = network(image).sum(dim=0)
        rows = [torch.autograd.grad(t, image, retain_graph=True)[0] for t in totals]
        return torch.stack(rows, dim=1)

    return jacobian


def _attack(task: Task) -> Callable[[], Any]:
    given = task.load()
    row = ROWS[tasks.ATTACKS[task.name]]
    peer = next(peer for peer in row.peers if peer.library == task.library)
    network, x = _network(task, given), _images(task, given["test_images"])
    labels = _labels(given["test_labels"])
    return lambda: peer.run(network, x, labels, tasks.EPSILON)
