"""The training recipes of Finlay & Oberman 2019.

They use pixels in [0, 1] on CIFAR-10, and pixels divided by ImageNet's standard
deviations s on ImageNet: there a length is multiplied by the root mean square of s, and
the weight of a squared gradient by the mean of s^2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opnorm.papers import Table
from opnorm.papers import finlay as _paper
from opnorm.training.recipes.preset import Preset, Settings

_CIFAR10, _IMAGENET = _paper.CIFAR10, _paper.IMAGENET
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FINLAY_CIFAR: Settings = {
    "dataset": "cifar10",
    "padding": "grey",
    "cutout": 16,
    "model": "resnext34",
    "width": 32,
    "logit_activation": True,
    "normalization": "none",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "step",
    "milestones": "60,120,160",
    "decay_factor": 0.2,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 200,
    "batch_size": 128,
}
_FINLAY_IMAGENET: Settings = {
    "dataset": "imagenet2012",
    # Batches are those of four GPUs together.
    "phases": "0:128:512:0.08,15:224:192:0.087,28:288:128:0.5",
    "model": "resnet50",
    "width": 64,
    "normalization": "imagenet",
    "optimizer": "sgd",
    "schedule": "linear",
    "learning_rates": "0:0.25,8:0.5,15:0.0625,15:0.1,25:0.01,28:0.001,"
    "28:0.000625,29:0.0000625",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decayed": "kernels_and_scales",
    "epochs": 29,
}
_FINLAY_ATTACK: Settings = {
    "method": "adversarial_only",
    "p": math.inf,
    "epsilon": 0.0314,
    "num_steps": 7,
    "step_size": 0.43 / math.sqrt(32 * 32 * 3),
    "random_start": False,
}
_FINLAY_CIFAR_NOTES = (
    "Augmentation of the released code: grey padding, flips, cutout of 16; the paper "
    "says standard. Logits pass through the activation, as released. "
)
_FINLAY_IMAGENET_NOTES = (
    "Learning rates and sizes of images are those of the released code. "
)
_FINLAY_GRADIENT_NOTES = (
    "The released code takes the gradient of the batch's mean loss in train mode; here "
    "the direction is found in inference mode. "
)


def presets() -> Iterable[Preset]:
    """Lists the rows of Tables 1 and 2, those of CIFAR-10 first."""
    return sorted(_finlay_unordered(), key=lambda preset: "imagenet" in preset.name)


def _finlay_unordered() -> Iterable[Preset]:
    tables = (_paper.TABLE_1, _paper.TABLE_2, _paper.TABLE_3)
    for name, smooth in (("undefended", False), ("smooth_undefended", True)):
        for label, dataset in (("cifar10", _CIFAR10), ("imagenet", _IMAGENET)):
            rows = _rows(tables, dataset, _paper.UNDEFENDED, smooth=smooth)
            yield _finlay_preset(f"{label}_{name}", {}, {}, "", rows, smooth=smooth)
    stated = {"epsilon": "0.0314 (Linf)", "step": "0.43 / sqrt(3072)", "steps": "7"}
    rows = _rows(tables, _CIFAR10, _paper.ADVERSARIAL)
    yield _finlay_preset("cifar10_at_linf", _FINLAY_ATTACK, stated, "", rows)
    for name, weight in (("l1_0.1", 0.1), ("l1_1", 1.0)):
        yield _finlay_preset(
            f"cifar10_{name}",
            # Training does not use epsilon; this is the one of Table 1's attacks.
            {"p": math.inf, "epsilon": 8 / 255, "divide_by_size": True}
            | _finlay_penalty(weight, 1.0),
            {"lambda": f"{weight:g}", "h": "0.01"},
            "With the paper's direction sign(g) / sqrt(N), its squared 1-norm of the "
            "gradient is that norm divided by N = 3072. ",
            _rows(tables[:1], _CIFAR10, _paper.GRADIENT, weight),
        )
    # In standardised pixels lengths are divided by s, and gradients multiplied.
    mean_square = math.fsum(s * s for s in _IMAGENET_STD) / 3
    for name, weight in (("l2_0.1", 0.1), ("l2_0.1_smooth", 0.1), ("l2_1", 1.0)):
        smooth = name.endswith("smooth")
        stated = {"lambda": f"{weight:g}", "h": "0.01"}
        yield _finlay_preset(
            f"cifar10_{name}",
            _finlay_penalty(weight, 1.0),
            stated,
            "",
            # The networks of CIFAR-10 in Table 1 have the 1-norm.
            _rows(tables[1:], _CIFAR10, _paper.GRADIENT, weight, smooth=smooth),
            smooth=smooth,
        )
        yield _finlay_preset(
            f"imagenet_{name}",
            _finlay_penalty(weight, mean_square),
            stated | {"units": "pixels divided by ImageNet's standard deviations"},
            "Lambda and h are converted by the mean square of ImageNet's standard "
            f"deviations, {mean_square:.4g}, and its root: exactly so only where the "
            "three channels agree. ",
            _rows(tables, _IMAGENET, _paper.GRADIENT, weight, smooth=smooth),
            smooth=smooth,
        )


def _finlay_penalty(weight: float, mean_square: float) -> Settings:
    return {
        "method": "gradient_regularization",
        "weight": weight * mean_square,
        "difference_step": 0.01 * math.sqrt(mean_square),
        "penalty_fraction": 1.0,
    }


def _finlay_preset(
    name: str,
    extra: Settings,
    paper: Mapping[str, str],
    notes: str,
    rows: tuple[tuple[Any, ...], ...],
    *,
    smooth: bool = False,
) -> Preset:
    if name.startswith("cifar10"):
        settings = _FINLAY_CIFAR | dict(extra)
        notes += _FINLAY_CIFAR_NOTES
        general = {"optimizer": "SGD, momentum 0.9", "epochs": "200", "batch": "128"}
    else:
        settings = _FINLAY_IMAGENET | dict(extra)
        notes += _FINLAY_IMAGENET_NOTES
        general = {"epochs": "29", "batch": "128, 48, 32 on each of 4 GPUs"}
    if smooth:
        settings["activation"] = "smooth_relu"
    if extra.get("method") == "gradient_regularization":
        notes += _FINLAY_GRADIENT_NOTES
    source = "Finlay & Oberman 2019, Tables 1 and 2"
    stated = {**paper, **general}
    return Preset(f"finlay_{name}", settings, source, stated, notes, rows=rows)


def _rows(
    tables: Sequence[Table[Any]],
    dataset: str,
    method: str,
    weight: float | None = None,
    *,
    smooth: bool = False,
) -> tuple[tuple[Any, ...], ...]:
    """Returns the rows of tables that are of one network."""
    columns = {"dataset": dataset, "method": method, "weight": weight, "smooth": smooth}
    return tuple(row for table in tables for row in table.select(**columns))
