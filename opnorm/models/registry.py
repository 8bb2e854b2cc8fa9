"""Networks by name."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from opnorm.models.activations import check_activation
from opnorm.models.alexnet import AlexNet
from opnorm.models.cnn7 import CNN7
from opnorm.models.elu_net import ELUNet
from opnorm.models.fixup import FixupResNet, check_depth
from opnorm.models.inception import Inception
from opnorm.models.mlp import MLP
from opnorm.models.normalization import ChannelStatistic
from opnorm.models.outputs import check_dropout, check_size
from opnorm.models.resnet import ResNet50
from opnorm.models.resnet18 import ResNet18
from opnorm.models.resnet32 import ResNet32
from opnorm.models.resnext import ResNeXt34
from opnorm.models.wide_resnet import WideResNet
from opnorm.models.wide_resnet50 import WideResNet50

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn7": CNN7,
    "mlp": MLP,
    "wrn28": WideResNet,
    "wrn28_gowal": functools.partial(WideResNet, padding="same"),
    "resnet50": ResNet50,
    "resnet18": ResNet18,
    "resnet18_cifar": functools.partial(ResNet18, small_images=True),
    "resnext34": ResNeXt34,
    "fixup": FixupResNet,
    "fixup56": FixupResNet,
    "fixup110": functools.partial(FixupResNet, depth=110),
    "wrn50_2": WideResNet50,
    "mlp1": functools.partial(MLP, hidden=(512,)),
    "alexnet": AlexNet,
    "alexnet_bn": functools.partial(AlexNet, batch_norm=True),
    "alexnet_no_lrn": functools.partial(AlexNet, response_normalization=False),
    "inception": Inception,
    "resnet32": ResNet32,
    "elu_net": ELUNet,
}
NAMES = tuple(_MODELS)
_HIDDEN_LAYERS = {"mlp": 2, "mlp1": 1}
_WITHOUT_BLOCKS = (*_HIDDEN_LAYERS, "elu_net")
_FIXUP = ("fixup", "fixup56", "fixup110")
_ALEXNETS = ("alexnet", "alexnet_bn", "alexnet_no_lrn")
# The networks that have an option which others do not have.
_OWNERS = {
    "logit_activation": ("resnext34",),
    "depth": ("fixup",),
    "scalar_biases": _FIXUP,
    "scalar_multipliers": _FIXUP,
    "dropout": _ALEXNETS,
}


def create(
    name: str,
    *,
    num_classes: int = 10,
    width: int | None = None,
    mean: ChannelStatistic = 0.5,
    std: ChannelStatistic = 0.5,
    dtype: DTypeLike = jnp.float32,
    activation: str = "relu",
    rematerialize: bool = False,
    logit_activation: bool = False,
    depth: int | None = None,
    scalar_biases: bool = False,
    scalar_multipliers: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Builds the network called ``name``; nothing is computed or allocated.

    Args:
      name: one of ``NAMES``. The networks alexnet_bn, with BatchNorm, and
        alexnet_no_lrn have the widths of alexnet.
      num_classes: K, number of logits.
      width: channels of the first convolution (cnn7: 128; alexnet and inception: 96;
        wrn50_2 and elu_net: 64), size of the hidden layers (mlp, which has two, and
        mlp1, which has one: 512), widening factor (wrn28 and wrn28_gowal: 10), or
        channels of the first stage (resnet50: 64, before their expansion; resnet18 and
        resnet18_cifar: 64; resnext34: 32; fixup, fixup56, fixup110 and resnet32: 16).
        None for the default in parentheses.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units,
        or "image" for that of each image (``STATISTICS`` has common ones).
      std: the pixels are then divided by it; one number or one per channel, or "image".
      dtype: dtype of the computation.
      activation: a name in ``ACTIVATIONS``. The default is "relu" for every network,
        also for elu_net, whose authors use "elu", and wrn28_gowal, whose authors use
        "swish".
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it; mlp, mlp1 and elu_net have no blocks and do not take it.
      logit_activation: if true, logits go through the activation; only resnext34 takes
        it.
      depth: depth of fixup, 6 n + 2; None for 56. The other networks have the depth of
        their name.
      scalar_biases: if true, fixup, fixup56 and fixup110 have their authors' scalar
        biases; see :class:`FixupResNet`.
      scalar_multipliers: if true, their blocks have scalar factors.
      dropout: part of the entries that alexnet, alexnet_bn and alexnet_no_lrn drop in
        training, in [0, 1).

    Returns:
      A Flax module ``model.apply(variables, x, train=False, outputs="logits")``.

    Raises:
      ValueError: for an unknown name or activation, a size below 1, another depth, or
        an option that the network does not have.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import models
      >>> module = models.create("mlp1", width=8, num_classes=3)
      >>> images = jnp.zeros((2, 4, 4, 1))
      >>> variables = module.init(jax.random.key(0), images)
      >>> jax.tree.map(jnp.shape, variables["params"]["dense1"])
      {'bias': (8,), 'kernel': (16, 8)}
      >>> module.apply(variables, images, outputs="all").features.shape
      (2, 8)
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; it may be one of {', '.join(NAMES)}.")
    check_size("num_classes", num_classes)
    check_activation(activation)
    check_dropout(dropout)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
        "dtype": dtype,
        "activation": activation,
    }
    if width is not None:
        check_size("width", width)
        hidden = (width,) * _HIDDEN_LAYERS.get(name, 0)
        options |= {"hidden": hidden} if hidden else {"width": width}
    if name not in _WITHOUT_BLOCKS:
        options["rematerialize"] = rematerialize
    elif rematerialize:
        raise ValueError(
            f"rematerialize is True; {name} has no blocks, so it must be False."
        )
    if depth is not None:
        check_depth(depth)
    own = {
        "logit_activation": logit_activation,
        "depth": depth,
        "scalar_biases": scalar_biases,
        "scalar_multipliers": scalar_multipliers,
        "dropout": dropout,
    }
    for option, value in own.items():
        if value in (None, False):
            continue
        if name not in _OWNERS[option]:
            raise ValueError(
                f"{option} is {value}, which {name} does not have; it belongs to "
                f"{', '.join(_OWNERS[option])}."
            )
        options[option] = value
    return _MODELS[name](**options)
