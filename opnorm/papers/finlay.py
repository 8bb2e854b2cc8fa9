"""Tables of Finlay & Oberman, "Scaleable input gradient regularization for adversarial
robustness", 2019.

Errors are top-1 on CIFAR-10 (ResNeXt34-2x32, 200 epochs) and top-5 on ImageNet
(ResNet-50). Lambda of ImageNet is in units of standardised pixels. The paper has three
tables of results.
"""

from typing import NamedTuple

from opnorm.papers.table import FRACTION, PIXELS, Table

CIFAR10, IMAGENET = "cifar10", "imagenet2012"
UNDEFENDED, ADVERSARIAL, GRADIENT = "undefended", "adversarial", "gradient"
# Distances at which Table 1 gives errors, in [0, 1] pixel units.
EPSILONS = (2 / 255, 8 / 255)


class Linf(NamedTuple):
    """A network of Table 1: distances in Linf.

    Attributes:
      dataset: "cifar10" or "imagenet2012".
      method: "undefended", "adversarial" (7 steps against Linf) or "gradient", the
        penalty on the squared norm of the gradient: 1-norm on CIFAR-10, 2-norm on
        ImageNet.
      weight: lambda of the penalty.
      smooth: whether the activation is the smooth ReLU.
      clean_error: error without an attack.
      error_at: errors within the distances ``EPSILONS``.
      distance: mean adversarial distance.
      ratio: improvement ratio over the undefended network with ReLU.
      hours: duration of the training.
    """

    dataset: str
    method: str
    weight: float | None
    smooth: bool
    clean_error: float
    error_at: tuple[float, float]
    distance: float
    ratio: float | None
    hours: float


class L2(NamedTuple):
    """A network of Table 2: distances in L2, penalties on the squared 2-norm.

    Attributes:
      dataset, method, weight, smooth, clean_error, ratio, hours: as in :class:`Linf`.
      lipschitz: mean L-bound on the distance.
      curvature: mean C-bound on the distance.
      distance: mean adversarial distance.
    """

    dataset: str
    method: str
    weight: float | None
    smooth: bool
    clean_error: float
    lipschitz: float
    curvature: float | None
    distance: float
    ratio: float | None
    hours: float


class Regularity(NamedTuple):
    """A network of Table 3: gradient of the margin, Hessian of its smooth form.

    Attributes:
      dataset, method, weight, smooth: as in :class:`L2`.
      mean_slope, max_slope: norm of the gradient over the test images.
      mean_curvature, max_curvature: norm of the Hessian over the test images.
    """

    dataset: str
    method: str
    weight: float | None
    smooth: bool
    mean_slope: float
    mean_curvature: float | None
    max_slope: float
    max_curvature: float | None


_UNITS = {
    "clean_error": FRACTION,
    "error_at": FRACTION,
    "distance": PIXELS,
    "lipschitz": PIXELS,
    "curvature": PIXELS,
    "hours": "h",
}
_C, _I = CIFAR10, IMAGENET
_U, _A, _G = UNDEFENDED, ADVERSARIAL, GRADIENT

TABLE_1 = Table(
    "Finlay & Oberman 2019, Table 1",
    (
        Linf(_C, _U, None, False, 0.0436, (0.7082, 0.9894), 6.62e-3, None, 2.06),
        Linf(_C, _A, None, False, 0.1633, (0.2286, 0.4602), 4.07e-2, 1.88, 12.10),
        Linf(_C, _G, 0.1, False, 0.0645, (0.2492, 0.7041), 2.35e-2, 5.31, 5.22),
        Linf(_C, _G, 1.0, False, 0.0902, (0.1847, 0.5869), 3.34e-2, 3.78, 5.15),
        Linf(_I, _U, None, False, 0.0694, (0.9021, 0.9894), 3.94e-3, None, 20.30),
        Linf(_I, _U, None, True, 0.0939, (0.8203, 0.9542), 9.74e-3, 4.17, 23.46),
        Linf(_I, _G, 0.1, False, 0.0766, (0.7056, 0.9753), 7.96e-3, 9.83, 32.60),
        Linf(_I, _G, 0.1, True, 0.0949, (0.6323, 0.9421), 1.24e-2, 5.84, 52.47),
        Linf(_I, _G, 1.0, False, 0.1026, (0.5279, 0.9593), 9.95e-3, 3.19, 33.87),
    ),
    {name: _UNITS[name] for name in Linf._fields if name in _UNITS},
    ("Both undefended networks have an error of 98.94 % at 8/255.",),
)
TABLE_2 = Table(
    "Finlay & Oberman 2019, Table 2",
    (
        L2(_C, _U, None, False, 0.0436, 5.57e-3, None, 0.12, None, 2.06),
        L2(_C, _U, None, True, 0.0684, 1.01e-2, 1.19e-2, 0.11, -0.20, 3.78),
        L2(_C, _A, None, False, 0.1633, 0.18, None, 0.74, 1.81, 12.10),
        L2(_C, _G, 0.1, False, 0.0803, 0.14, None, 0.63, 4.86, 5.18),
        L2(_C, _G, 0.1, True, 0.1168, 0.13, 0.17, 0.59, 2.25, 9.46),
        L2(_C, _G, 1.0, False, 0.2031, 0.30, None, 0.81, 1.52, 5.08),
        L2(_I, _U, None, False, 0.0694, 3.63e-2, None, 0.55, None, 20.30),
        L2(_I, _U, None, True, 0.0939, 2.56e-2, 3.40e-2, 0.56, 0.12, 23.46),
        L2(_I, _G, 0.1, False, 0.0766, 0.13, None, 1.14, 10.23, 32.60),
        L2(_I, _G, 0.1, True, 0.0949, 9.23e-2, 7.52e-2, 1.09, 2.64, 52.47),
        L2(_I, _G, 1.0, False, 0.1026, 0.26, None, 1.75, 4.52, 33.87),
    ),
    {name: _UNITS[name] for name in L2._fields if name in _UNITS},
    (
        "The ratios differ from those of the printed columns by the rounding of the "
        "distances.",
        "The C-bound of the smooth gradient row of ImageNet is below its L-bound; "
        "that is possible, since its curvature is a maximum over all images.",
    ),
)
TABLE_3 = Table(
    "Finlay & Oberman 2019, Table 3",
    (
        Regularity(_C, _U, None, False, 3.05, None, 122.34, None),
        Regularity(_C, _U, None, True, 3.25, 198.23, 65.35, 8134.26),
        Regularity(_C, _A, None, False, 0.40, None, 2.52, None),
        Regularity(_C, _G, 0.1, False, 0.58, None, 4.43, None),
        Regularity(_C, _G, 0.1, True, 0.65, 2.08, 4.52, 27.05),
        Regularity(_C, _G, 1.0, False, 0.35, None, 1.33, None),
        Regularity(_I, _U, None, False, 1.12, None, 17.51, None),
        Regularity(_I, _U, None, True, 1.02, 11.61, 25.43, 848.69),
        Regularity(_I, _G, 0.1, False, 0.46, None, 4.85, None),
        Regularity(_I, _G, 0.1, True, 0.45, 1.87, 6.99, 171.98),
    ),
    {
        "mean_slope": "1 / pixels",
        "max_slope": "1 / pixels",
        "mean_curvature": "1 / pixels^2",
        "max_curvature": "1 / pixels^2",
    },
    (
        "The text calls the curvature the largest absolute eigenvalue; the released "
        "code takes the largest eigenvalue with its sign.",
    ),
)
