"""experiments: the numbers of Finlay & Oberman's tables, as printed.

Nothing here was measured by this project. Errors are fractions, distances in [0, 1]
pixel units, times hours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from opnorm import data

UNDEFENDED, ADVERSARIAL = "undefended", "adversarial"
WEAK, STRONG = "gradient_0.1", "gradient_1"
# On ImageNet lambda is in units of pixels divided by these; in pixel units it is less
# by their mean square.
_MEAN_SQUARE = math.fsum(s * s for s in (0.229, 0.224, 0.225)) / 3
IMAGENET_WEAK, IMAGENET_STRONG = (
    f"gradient_{weight * _MEAN_SQUARE:g}" for weight in (0.1, 1.0)
)


class Row(NamedTuple):
    """A row of Table 1 (Linf) or 2 (L2), with what Table 3 says of the same network.

    Attributes:
      name: of the network, as the binary's --rows call it.
      clean_error: top-1 on CIFAR-10, top-5 on ImageNet.
      distance: mean adversarial distance.
      ratio: improvement ratio over the undefended network.
      hours: of training.
      error_at: by epsilon, Table 1 only.
      lipschitz, curvature: means of the L-bound and the C-bound, Table 2 only.
      slope: mean and largest norm of the gradient, Table 3.
      hessian: mean and largest norm of the Hessian, Table 3.
    """

    name: str
    clean_error: float
    distance: float
    ratio: float | None
    hours: float
    error_at: tuple[float, ...] = ()
    lipschitz: float | None = None
    curvature: float | None = None
    slope: tuple[float, float] | None = None
    hessian: tuple[float, float] | None = None


class Table(NamedTuple):
    """What the paper says of one data set in one norm.

    Attributes:
      setting: data, network and where in the paper.
      rows: of the tables.
      epsilons: that errors are given at.
    """

    setting: str
    rows: tuple[Row, ...]
    epsilons: tuple[float, ...] = ()


_SMOOTH = "_smooth"
_EPSILONS = (2 / 255, 8 / 255)

CIFAR10_LINF = Table(
    "Finlay & Oberman 2019, Table 1: CIFAR-10, ResNeXt34-2x32, 200 epochs",
    (
        Row(UNDEFENDED, 0.0436, 6.62e-3, None, 2.06, (0.7082, 0.9894)),
        Row(ADVERSARIAL, 0.1633, 4.07e-2, 1.88, 12.10, (0.2286, 0.4602)),
        Row(WEAK, 0.0645, 2.35e-2, 5.31, 5.22, (0.2492, 0.7041)),
        Row(STRONG, 0.0902, 3.34e-2, 3.78, 5.15, (0.1847, 0.5869)),
    ),
    _EPSILONS,
)
IMAGENET_LINF = Table(
    "Finlay & Oberman 2019, Table 1: ImageNet, ResNet-50, top-5 error; gradient rows "
    "with the squared 2-norm",
    (
        Row(UNDEFENDED, 0.0694, 3.94e-3, None, 20.30, (0.9021, 0.9894)),
        Row(UNDEFENDED + _SMOOTH, 0.0939, 9.74e-3, 4.17, 23.46, (0.8203, 0.9542)),
        Row(IMAGENET_WEAK + "_L2", 0.0766, 7.96e-3, 9.83, 32.60, (0.7056, 0.9753)),
        Row(
            IMAGENET_WEAK + "_L2" + _SMOOTH,
            0.0949,
            1.24e-2,
            5.84,
            52.47,
            (0.6323, 0.9421),
        ),
        Row(IMAGENET_STRONG + "_L2", 0.1026, 9.95e-3, 3.19, 33.87, (0.5279, 0.9593)),
    ),
    _EPSILONS,
)
CIFAR10_L2 = Table(
    "Finlay & Oberman 2019, Tables 2 and 3: CIFAR-10, ResNeXt34-2x32, 200 epochs",
    (
        Row(
            UNDEFENDED,
            0.0436,
            0.12,
            None,
            2.06,
            lipschitz=5.57e-3,
            slope=(3.05, 122.34),
        ),
        Row(
            UNDEFENDED + _SMOOTH,
            0.0684,
            0.11,
            -0.20,
            3.78,
            lipschitz=1.01e-2,
            curvature=1.19e-2,
            slope=(3.25, 65.35),
            hessian=(198.23, 8134.26),
        ),
        Row(
            ADVERSARIAL + "_Linf",
            0.1633,
            0.74,
            1.81,
            12.10,
            lipschitz=0.18,
            slope=(0.40, 2.52),
        ),
        Row(WEAK, 0.0803, 0.63, 4.86, 5.18, lipschitz=0.14, slope=(0.58, 4.43)),
        Row(
            WEAK + _SMOOTH,
            0.1168,
            0.59,
            2.25,
            9.46,
            lipschitz=0.13,
            curvature=0.17,
            slope=(0.65, 4.52),
            hessian=(2.08, 27.05),
        ),
        Row(STRONG, 0.2031, 0.81, 1.52, 5.08, lipschitz=0.30, slope=(0.35, 1.33)),
    ),
)
IMAGENET_L2 = Table(
    "Finlay & Oberman 2019, Tables 2 and 3: ImageNet, ResNet-50, top-5 error; lambda "
    "0.1 and 1 in units of standardised pixels",
    (
        Row(
            UNDEFENDED,
            0.0694,
            0.55,
            None,
            20.30,
            lipschitz=3.63e-2,
            slope=(1.12, 17.51),
        ),
        Row(
            UNDEFENDED + _SMOOTH,
            0.0939,
            0.56,
            0.12,
            23.46,
            lipschitz=2.56e-2,
            curvature=3.40e-2,
            slope=(1.02, 25.43),
            hessian=(11.61, 848.69),
        ),
        Row(
            IMAGENET_WEAK,
            0.0766,
            1.14,
            10.23,
            32.60,
            lipschitz=0.13,
            slope=(0.46, 4.85),
        ),
        Row(
            IMAGENET_WEAK + _SMOOTH,
            0.0949,
            1.09,
            2.64,
            52.47,
            lipschitz=9.23e-2,
            curvature=7.52e-2,
            slope=(0.45, 6.99),
            hessian=(1.87, 171.98),
        ),
        Row(IMAGENET_STRONG, 0.1026, 1.75, 4.52, 33.87, lipschitz=0.26),
    ),
)


def table_for(pictures: data.Dataset, norm: str) -> Table | None:
    """The paper's table for the data that were measured, or None if it has none."""
    if pictures.name in ("cifar10", "cifar10_mini"):
        return {"L2": CIFAR10_L2, "Linf": CIFAR10_LINF}[norm]
    if pictures.num_classes == 1000:
        return {"L2": IMAGENET_L2, "Linf": IMAGENET_LINF}[norm]
    return None


def find(rows: Sequence[Row], name: str) -> Row | None:
    """The row of this name, or None."""
    return next((row for row in rows if row.name == name), None)
