"""The training recipes of the "regularisation view".

That is the ICLR 2020 submission *Towards Understanding the Regularization of
Adversarial Robustness on Neural Networks*.
"""

import dataclasses
import math
from collections.abc import Iterable

from opnorm.papers import Table
from opnorm.papers import regularization_view as view
from opnorm.training.recipes.preset import Preset, Settings

_Table = Table[view.Generalization]
_ARCHITECTURES = {
    "fixup56": "resnet56",
    "fixup110": "resnet110",
    "wrn50_2": "wrn50_2",
}
_VIEW_FIXUP: Settings = {
    "normalization": "cifar10",
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "schedule": "step",
    "milestones": "100,150",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "epochs": 200,
    "batch_size": 256,
}
_VIEW_TINY: Settings = {
    "dataset": "tiny_imagenet",
    "image_size": 56,
    "model": "wrn50_2",
    "width": None,
    "normalization": "imagenet",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "step",
    "milestones": "30,60",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "epochs": 90,
    "batch_size": 256,
}
_VIEW_UNITS = (
    "Epsilon is taken literally, as a length of pixels; the published accuracies look "
    "as if it had been one of standardised images, a quarter of that, which "
    "--epsilon_unit=standardized takes it for. "
)
_VIEW_OPEN = (
    "Weight decay and normalisation [?]: 1e-4, as in the public Fixup code, and "
    "CIFAR-10's mean and standard deviation. That code's smaller learning rate of "
    "biases and scales is not followed. Scalar layers [?]: none; --scalar_biases and "
    "--scalar_multipliers add them. "
)


def presets() -> Iterable[Preset]:
    """Lists the rows of Tables 2 to 6."""
    fixup: list[tuple[str, str, str, _Table]] = [
        ("resnet56", "fixup56", "cifar10", view.TABLE_3),
        ("resnet110", "fixup110", "cifar10", view.TABLE_3),
        ("cifar100_resnet56", "fixup56", "cifar100", view.TABLE_4),
        ("cifar100_resnet110", "fixup110", "cifar100", view.TABLE_4),
    ]
    for label, model, dataset, table in fixup:
        base = {"dataset": dataset, "model": model, "width": None, **_VIEW_FIXUP}
        for level in (4, 8, 16):
            yield _view_preset(label, base, level, table, _VIEW_OPEN)
            if model == "fixup56":
                yield _view_preset(
                    label, base, level, view.TABLE_2, _VIEW_OPEN, fgsm=True
                )
            if (model, dataset) == ("fixup56", "cifar10"):
                for bound in (1, 3, 5):
                    yield _bounded(
                        _view_preset(label, base, level, view.TABLE_6, _VIEW_OPEN),
                        level,
                        bound,
                    )
    tiny = (
        "Give --dataset=tiny_imagenet:/path, the unpacked archive. "
        "Weight decay, normalisation and least area of the crops [?]: 1e-4, ImageNet's "
        "mean and standard deviation, and 0.08. "
    )
    for level in (0, 4, 8, 16):
        yield _view_preset("tiny_imagenet", _VIEW_TINY, level, view.TABLE_5, tiny)


def _bounded(preset: Preset, level: int, bound: int) -> Preset:
    return dataclasses.replace(
        preset,
        name=f"{preset.name}_sn{bound}",
        settings={
            **preset.settings,
            "spectral_norm_bound": float(bound),
            "spectral_norm_method": "clip",
        },
        paper={**preset.paper, "spectral norms": f"clipped to {bound} every epoch"},
        rows=view.TABLE_6.select(bound=float(bound), trained_with=level),
        notes="Strided and dense layers [?]: see clip_spectral_norms. The published "
        "clip is a single one, after which norms exceed the bound; "
        f"--spectral_norm_method=clip_once takes it. {preset.notes}",
    )


def _view_preset(
    label: str,
    base: Settings,
    level: int,
    table: _Table,
    notes: str,
    fgsm: bool = False,
) -> Preset:
    settings, paper = dict(base), {}
    if level:
        epsilon = level / 255
        settings |= {"method": "adversarial_only", "p": math.inf, "epsilon": epsilon}
        step, count = (level, 1) if fgsm else (2, 10)
        settings |= {"num_steps": count, "step_size": step / 255}
        paper = {"epsilon": f"{level} (Linf, of 255)", "steps": str(count)}
        if fgsm:
            settings["random_start"] = False
            notes = f"The step [?]: epsilon, without a random start. {notes}"
        else:
            paper["step"] = "2 (of 255)"
        notes = _VIEW_UNITS + notes
    return Preset(
        f"regularization_view_{label}_{'fgsm' if fgsm else 'at'}{level}",
        settings,
        table.source,
        paper | {"optimizer": "SGD, momentum 0.9, batch 256"},
        notes.strip(),
        ("dataset",) if base["dataset"] == "tiny_imagenet" else (),
        table.select(
            dataset=base["dataset"],
            architecture=_ARCHITECTURES[base["model"]],
            bound=None,
            trained_with=level,
        ),
    )
