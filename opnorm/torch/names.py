"""The names that PyTorch networks give to the tensors of our networks.

A convention turns the names of our tensors, such as ``stage1_block2.conv1.weight`` (our
modules, and PyTorch's words for their arrays), into those of a file.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opnorm import models

Arrays = Mapping[str, np.ndarray]
# (our names, the arrays of a file) -> {our name: the file's name}.
Convention = Callable[[Sequence[str], Arrays], Mapping[str, str]]
# A pattern of our names, and the file's name. ``{0}`` is the first group, and where it
# is a number, ``{less[0]}`` is that minus 1 and ``{more[0]}`` plus 1.
Rules = tuple[tuple[str, str], ...]

_BLOCK = r"stage(\d+)_block(\d+)\."


def _residual(linear: str, shortcut: str) -> Rules:
    return (
        (r"conv\.(.*)", "conv1.{0}"),
        (r"norm\.(.*)", "bn1.{0}"),
        (r"logits\.(.*)", linear + ".{0}"),
        (_BLOCK + r"conv(\d)\.(.*)", "layer{0}.{less[1]}.conv{2}.{3}"),
        (_BLOCK + r"norm(\d)\.(.*)", "layer{0}.{less[1]}.bn{2}.{3}"),
        (_BLOCK + r"shortcut\.(.*)", "layer{0}.{less[1]}." + shortcut + ".0.{2}"),
        (_BLOCK + r"shortcut_norm\.(.*)", "layer{0}.{less[1]}." + shortcut + ".1.{2}"),
    )


_GROUP = r"group(\d+)_block(\d+)\."
# The names of most WideResNets for CIFAR-10.
_WIDE: Rules = (
    (r"conv\.(.*)", "conv1.{0}"),
    (r"norm\.(.*)", "bn1.{0}"),
    (r"logits\.(.*)", "fc.{0}"),
    (_GROUP + r"conv(\d)\.(.*)", "block{0}.layer.{less[1]}.conv{2}.{3}"),
    (_GROUP + r"norm(\d)\.(.*)", "block{0}.layer.{less[1]}.bn{2}.{3}"),
    (_GROUP + r"shortcut\.(.*)", "block{0}.layer.{less[1]}.convShortcut.{2}"),
)
# The names of Gowal et al. 2020 and of the networks that began from theirs.
_GOWAL_BLOCK = "layer.{less[0]}.block.{less[1]}."
_GOWAL: Rules = (
    (r"conv\.(.*)", "init_conv.{0}"),
    (r"norm\.(.*)", "batchnorm.{0}"),
    (r"logits\.(.*)", "logits.{0}"),
    (_GROUP + r"conv(\d)\.(.*)", _GOWAL_BLOCK + "conv_{less[2]}.{3}"),
    (_GROUP + r"norm(\d)\.(.*)", _GOWAL_BLOCK + "batchnorm_{less[2]}.{3}"),
    (_GROUP + r"shortcut\.(.*)", _GOWAL_BLOCK + "shortcut.{2}"),
)
# The names of Finlay & Oberman 2019. A stage after the first begins with a convolution
# and a pooling.
_FINLAY: Rules = (
    (r"conv1\.(.*)", "layer0.{0}"),
    (r"norm1\.norm\.(.*)", "layer0.bn.{0}"),
    (r"norm1\.(.*)", "layer0.{0}"),
    (r"conv(\d)\.(.*)", "layers.{less[0]}.0.{1}"),
    (r"norm(\d)\.norm\.(.*)", "layers.{less[0]}.0.bn.{1}"),
    (r"norm(\d)\.(.*)", "layers.{less[0]}.0.{1}"),
    (r"stage1_block(\d)\.conv(\d)\.(.*)", "layers.0.{less[0]}.conv{less[1]}.{2}"),
    (r"stage1_block(\d)\.norm(\d)\.(.*)", "layers.0.{less[0]}.bn{less[1]}.{2}"),
    (_BLOCK + r"conv(\d)\.(.*)", "layers.{less[0]}.{more[1]}.conv{less[2]}.{3}"),
    (_BLOCK + r"norm(\d)\.(.*)", "layers.{less[0]}.{more[1]}.bn{less[2]}.{3}"),
    (r"logits_norm\.norm\.(.*)", "fc.bn.{0}"),
    (r"logits_norm\.(.*)", "fc.{0}"),
    (r"logits\.(.*)", "fc.{0}"),
)


def by_rules(rules: Rules) -> Convention:
    """Returns the convention of the first rule that matches each name."""

    def convention(ours: Sequence[str], arrays: Arrays) -> Mapping[str, str]:
        del arrays
        return {name: _rename(name, rules) for name in ours}

    return convention


def by_function(names: Callable[[str], str]) -> Convention:
    """Returns the convention of a function from our names to the file's."""

    def convention(ours: Sequence[str], arrays: Arrays) -> Mapping[str, str]:
        del arrays
        return {name: names(name) for name in ours}

    return convention


def by_order(ours: Sequence[str], arrays: Arrays) -> Mapping[str, str]:
    """The convention of a chain: layers of each kind follow in the order of names.

    Numbers in the file's names are compared as numbers: ``features.10`` comes after
    ``features.3``. Our kinds are ``conv1, conv2, ...``, ``norm1, ...`` and ``logits``.
    """
    found: dict[str, str] = {}
    kinds = {
        "conv": [name for name, array in arrays.items() if array.ndim == 4],
        "norm": [name for name in arrays if name.endswith(".running_mean")],
        "logits": [name for name, array in arrays.items() if array.ndim == 2],
    }
    for kind, names in kinds.items():
        places = [name.rpartition(".")[0] for name in sorted(names, key=_natural)]
        for index, place in enumerate(places, start=1):
            ours_too = kind if kind == "logits" else f"{kind}{index}"
            found[ours_too] = place
    result = {}
    for name in ours:
        module, _, leaf = name.rpartition(".")
        result[name] = f"{found.get(module, module)}.{leaf}"
    return result


def conventions(module: object) -> tuple[Convention, ...]:
    """The conventions that are known for a network; our own names are one of all."""
    # Shapes do not tell how a WideResNet is padded; the names do.
    same = getattr(module, "padding", None) == "same"
    known: tuple[tuple[type, tuple[Convention, ...]], ...] = (
        (models.CNN7, (by_order,)),
        (models.WideResNet, (by_rules(_GOWAL if same else _WIDE),)),
        (models.ResNeXt34, (by_rules(_FINLAY),)),
        (
            models.ResNet50,
            (
                by_rules(_residual("fc", "downsample")),
                by_rules(_residual("linear", "shortcut")),
            ),
        ),
    )
    for kind, found in known:
        if isinstance(module, kind):
            return (*found, by_rules(()))
    return ()


def _rename(name: str, rules: Rules) -> str:
    for pattern, template in rules:
        match = re.fullmatch(pattern, name)
        if match:
            groups = match.groups()
            less, more = (
                [int(group) + step if group.isdigit() else 0 for group in groups]
                for step in (-1, 1)
            )
            return template.format(*groups, less=less, more=more)
    return name


def _natural(name: str) -> list[tuple[int, str]]:
    parts = name.split(".")
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
