"""The attacks of other libraries, beside the attacks of opnorm with their settings.

The libraries are those of the extra [oracles]; they are imported when an attack runs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.common import cli


class Peer(NamedTuple):
    """An attack of another library.

    Attributes:
      library: its name.
      run: ``(network, images, labels, epsilon) -> attacked images``.
    """

    library: str
    run: Callable[..., Any]


class Row(NamedTuple):
    """One attack in every library.

    Attributes:
      ours: the attack of opnorm, for :func:`attack_specs.parse_attack`.
      p: exponent of the norm.
      peers: the attacks of the other libraries.
    """

    ours: str
    p: float
    peers: tuple[Peer, ...]


def _step_size(epsilon: float, num_steps: int) -> float:
    """The default step size of opnorm's PGA, which the others are given too."""
    from opnorm import attacks

    return float(attacks.default_step_size(epsilon, num_steps))


def plain_pgd(p: float, steps: int, step_size: float | None = None) -> Peer:
    """Returns a plain loop of PGD in PyTorch, which takes every step.

    Args:
      p: exponent of the norm, 2 or infinity.
      steps: number of steps.
      step_size: length of a step; None for the default of opnorm's PGA.
    """

    def run(network: Any, x: Any, y: Any, epsilon: float) -> Any:
        import torch

        size = _step_size(epsilon, steps) if step_size is None else step_size
        loss = torch.nn.CrossEntropyLoss(reduction="sum")

        def length(z: Any) -> Any:
            return z.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)

        delta = torch.empty_like(x).uniform_(-1, 1)
        if p == 2:
            delta = torch.randn_like(x)
            radius = torch.rand(len(x), 1, 1, 1) ** (1 / x[0].numel())
            delta = delta / length(delta) * radius
        delta = (x + epsilon * delta).clamp(0, 1) - x
        for _ in range(steps):
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(network(x + delta), y), delta)
            with torch.no_grad():
                if p == 2:
                    delta = delta + size * gradient / length(gradient)
                    delta = delta * (epsilon / length(delta)).clamp(max=1)
                else:
                    delta = (delta + size * gradient.sign()).clamp(-epsilon, epsilon)
                delta = (x + delta).clamp(0, 1) - x
        return x + delta

    return Peer("pytorch", run)


def _torchattacks(name: str, **options: Any) -> Peer:
    def run(network: Any, x: Any, y: Any, epsilon: float) -> Any:
        module = cli.import_optional("torchattacks", "oracles")
        given = {
            key: value(epsilon) if callable(value) else value
            for key, value in options.items()
        }
        return getattr(module, name)(network, **given)(x, y)

    return Peer("torchattacks", run)


def _foolbox(
    name: str, options: Callable[[float], dict[str, Any]], budget: bool = True
) -> Peer:
    def run(network: Any, x: Any, y: Any, epsilon: float) -> Any:
        module = cli.import_optional("foolbox", "oracles")
        model = module.PyTorchModel(network, bounds=(0, 1))
        attack = getattr(module.attacks, name)(**options(epsilon))
        _, clipped, _ = attack(model, x, y, epsilons=epsilon if budget else None)
        return clipped

    return Peer("foolbox", run)


def _foolbox_jax(name: str, options: Callable[[float], dict[str, Any]]) -> Peer:
    """foolbox on the network of opnorm, compiled; the loop of foolbox is Python."""

    def run(network: Any, x: Any, y: Any, epsilon: float) -> Any:
        module = cli.import_optional("foolbox", "oracles")
        model = module.JAXModel(network, bounds=(0, 1))
        attack = getattr(module.attacks, name)(**options(epsilon))
        return attack(model, x, y, epsilons=epsilon)[1]

    return Peer("foolbox-jax", run)


def _pgd(p: float, steps: int) -> Row:
    name = "L2ProjectedGradientDescentAttack"
    theirs = "PGDL2"
    if p == math.inf:
        name, theirs = "LinfProjectedGradientDescentAttack", "PGD"

    def options(epsilon: float) -> dict[str, Any]:
        return {"steps": steps, "abs_stepsize": _step_size(epsilon, steps)}

    peers = (
        plain_pgd(p, steps),
        _torchattacks(
            theirs,
            eps=lambda epsilon: epsilon,
            alpha=lambda epsilon: _step_size(epsilon, steps),
            steps=steps,
        ),
        _foolbox(name, options),
        _foolbox_jax(name, options),
    )
    # The other libraries follow the whole gradient at a face of the box.
    return Row(f"pga num_steps={steps} keep=last skip_blocked=false", p, peers)


def _given(epsilon: float) -> float:
    return epsilon


def _auto(p: float, norm: str) -> Row:
    peer = _torchattacks(
        "AutoAttack", norm=norm, eps=_given, version="standard", n_classes=10
    )
    return Row("auto_attack", p, (peer,))


def _square(p: float, norm: str) -> Row:
    peer = _torchattacks(
        "Square", norm=norm, eps=_given, n_queries=1000, p_init=0.8, resc_schedule=False
    )
    return Row("square num_queries=1000", p, (peer,))


def _apgd(p: float, norm: str) -> Row:
    peer = _torchattacks("APGD", norm=norm, eps=_given, steps=100, loss="ce")
    return Row("apgd", p, (peer,))


def _fast_minimum_norm(p: float, name: str) -> Row:
    peer = _foolbox(name, lambda _: {"steps": 100}, budget=False)
    return Row("fast_minimum_norm num_steps=100", p, (peer,))


ROWS = {
    "pgd_l2": _pgd(2.0, 10),
    "pgd100_l2": _pgd(2.0, 100),
    "pgd_linf": _pgd(math.inf, 10),
    "pgd100_linf": _pgd(math.inf, 100),
    "apgd_l2": _apgd(2.0, "L2"),
    "apgd_linf": _apgd(math.inf, "Linf"),
    "square_l2": _square(2.0, "L2"),
    "square_linf": _square(math.inf, "Linf"),
    "deepfool_l2": Row(
        "deepfool",
        2.0,
        (
            _torchattacks("DeepFool", steps=50, overshoot=0.02),
            _foolbox("L2DeepFoolAttack", lambda _: {"steps": 50}, budget=False),
        ),
    ),
    "carlini_wagner_l2": Row(
        "carlini_wagner num_searches=5 num_steps=100",
        2.0,
        (
            _foolbox(
                "L2CarliniWagnerAttack",
                lambda _: {"binary_search_steps": 5, "steps": 100},
                budget=False,
            ),
        ),
    ),
    "decoupled_direction_l2": Row(
        "decoupled_direction num_steps=100",
        2.0,
        (_foolbox("DDNAttack", lambda _: {"steps": 100}, budget=False),),
    ),
    "fast_minimum_norm_l2": _fast_minimum_norm(2.0, "L2FMNAttack"),
    "fast_minimum_norm_linf": _fast_minimum_norm(math.inf, "LInfFMNAttack"),
    "boundary_l2": Row(
        "boundary num_steps=5000",
        2.0,
        (_foolbox("BoundaryAttack", lambda _: {"steps": 5000}, budget=False),),
    ),
    "auto_attack_l2": _auto(2.0, "L2"),
    "auto_attack_linf": _auto(math.inf, "Linf"),
}
