"""Tables of Farnia, Zhang & Tse, "Generalizable Adversarial Training via Spectral
Normalization", ICLR 2019.

Every accuracy is measured under the attack that the network was trained with (clean
images for ERM). Test accuracies are of the test images after the first 500, which are
the validation images.
"""

import math
from typing import NamedTuple

from opnorm.papers.table import FRACTION, Table


class Accuracy(NamedTuple):
    """Accuracies of Table 1, without and with a bound on the layers' spectral norms.

    Attributes:
      dataset: "cifar10", "mnist" or "svhn_cropped".
      architecture: "alexnet", "elu_alexnet", "inception", "mlp1", "mlp2", "resnet" or
        "elu_net".
      scheme: of the training: "erm", "fgm_l2", "fgm_linf", "pgm_l2", "pgm_linf" or
        "wrm".
      train, test: accuracies without a bound.
      bounded_train, bounded_test: accuracies with the bound that validation chose.
      starred: whether the paper marks that no bound was the best choice.
    """

    dataset: str
    architecture: str
    scheme: str
    train: float
    test: float
    bounded_train: float
    bounded_test: float
    starred: bool


class Validated(NamedTuple):
    """Accuracies of the released notebooks, with the bound that validation chose.

    Attributes:
      dataset, architecture, scheme: as in :class:`Accuracy`.
      validation, test: accuracies without a bound.
      bounded_validation, bounded_test: accuracies with the bound.
      beta: the bound; inf where none was the best choice.
    """

    dataset: str
    architecture: str
    scheme: str
    validation: float
    test: float
    bounded_validation: float
    bounded_test: float
    beta: float


class Runtime(NamedTuple):
    """Durations of Table 2.

    Attributes:
      dataset, architecture, scheme: as in :class:`Accuracy`.
      seconds: duration of 40 epochs without a bound.
      bounded_seconds: duration with a bound.
      ratio: of the latter to the former.
    """

    dataset: str
    architecture: str
    scheme: str
    seconds: float
    bounded_seconds: float
    ratio: float


class RuntimeRatio(NamedTuple):
    """Ratios of Table 3.

    Attributes:
      dataset, architecture, scheme: as in :class:`Accuracy`.
      ratio: duration of training with the norm of each layer over that with the norm
        of each kernel matrix (Miyato et al.).
    """

    dataset: str
    architecture: str
    scheme: str
    ratio: float


class Regularized(NamedTuple):
    """Accuracies at the end of training, of Figs. 10 and 11.

    Attributes:
      dataset, architecture, scheme: as in :class:`Accuracy`.
      regularization: "none", "normalize" (the norm of each layer), "normalize_kernels"
        (that of each kernel matrix), "batch_norm", "weight_decay" or "dropout".
      train, validation: accuracies under the attack trained with.
    """

    dataset: str
    architecture: str
    scheme: str
    regularization: str
    train: float
    validation: float


# By data set and architecture: scheme; train, test, bounded train and bounded test of
# Table 1; validation, test, bounded validation, bounded test and beta of the notebooks.
_Accuracies = tuple[
    *(tuple[str, float, float, float, float]),
    *(tuple[float, float, float, float, float]),
]
_ACCURACIES: dict[tuple[str, str], tuple[_Accuracies, ...]] = {
    ("cifar10", "alexnet"): (
        ("erm", 1.00, 0.79, 1.00, 0.79, 0.7620, 0.7889, 0.8140, 0.7898, 2.0),
        ("fgm_l2", 0.98, 0.54, 0.93, 0.63, 0.5320, 0.5441, 0.6180, 0.6283, 1.6),
        ("fgm_linf", 1.00, 0.51, 0.67, 0.56, 0.4700, 0.5060, 0.5640, 0.5597, 1.3),
        ("pgm_l2", 0.99, 0.50, 0.92, 0.62, 0.4820, 0.5043, 0.5980, 0.6159, 1.6),
        ("pgm_linf", 0.99, 0.44, 0.86, 0.54, 0.4260, 0.4379, 0.5220, 0.5416, 1.6),
        ("wrm", 1.00, 0.61, 0.76, 0.65, 0.5960, 0.6113, 0.6120, 0.6523, 1.3),
    ),
    ("cifar10", "elu_alexnet"): (
        ("erm", 1.00, 0.79, 1.00, 0.79, 0.7700, 0.7919, 0.7820, 0.7892, 2.0),
        ("fgm_l2", 0.97, 0.52, 0.68, 0.60, 0.5080, 0.5223, 0.5820, 0.6025, 1.3),
        ("pgm_l2", 0.98, 0.53, 0.88, 0.61, 0.5280, 0.5263, 0.5800, 0.6069, 1.6),
        ("wrm", 1.00, 0.60, 1.00, 0.60, 0.5580, 0.5960, 0.6020, 0.5986, 4.0),
    ),
    ("cifar10", "inception"): (
        ("erm", 1.00, 0.85, 1.00, 0.86, 0.8440, 0.8541, 0.8720, 0.8601, 1.6),
        ("pgm_l2", 0.99, 0.53, 1.00, 0.58, 0.5180, 0.5266, 0.5840, 0.5781, 1.6),
        ("pgm_linf", 0.98, 0.48, 0.62, 0.56, 0.5200, 0.4775, 0.5580, 0.5551, 1.0),
        ("wrm", 1.00, 0.66, 1.00, 0.67, 0.6520, 0.6577, 0.6780, 0.6718, 1.6),
    ),
    ("cifar10", "mlp1"): (
        ("erm", 0.98, 0.49, 0.68, 0.53, 0.4740, 0.4920, 0.5100, 0.5320, 0.8),
        ("fgm_l2", 0.60, 0.36, 0.60, 0.46, 0.3300, 0.3622, 0.4440, 0.4616, 1.0),
        ("pgm_l2", 0.57, 0.36, 0.55, 0.46, 0.3320, 0.3587, 0.4200, 0.4614, 0.8),
        ("wrm", 0.60, 0.41, 0.62, 0.50, 0.3620, 0.4081, 0.4840, 0.4967, 0.8),
    ),
    ("cifar10", "mlp2"): (
        ("erm", 0.99, 0.51, 0.79, 0.56, 0.4620, 0.5080, 0.5300, 0.5587, 1.0),
        ("fgm_l2", 0.57, 0.36, 0.66, 0.49, 0.3320, 0.3581, 0.4600, 0.4876, 1.0),
        ("pgm_l2", 0.93, 0.35, 0.66, 0.48, 0.3300, 0.3499, 0.4540, 0.4835, 1.0),
        ("wrm", 0.87, 0.35, 0.73, 0.52, 0.3140, 0.3523, 0.4740, 0.5200, 1.0),
    ),
    ("cifar10", "resnet"): (
        ("erm", 1.00, 0.80, 1.00, 0.83, 0.8180, 0.8044, 0.8400, 0.8267, 1.6),
        ("pgm_l2", 0.99, 0.49, 1.00, 0.55, 0.4760, 0.4894, 0.5860, 0.5456, 2.5),
        ("pgm_linf", 0.98, 0.44, 0.72, 0.53, 0.4200, 0.4402, 0.5020, 0.5278, 1.0),
        ("wrm", 1.00, 0.63, 1.00, 0.66, 0.6280, 0.6286, 0.6500, 0.6563, 1.6),
    ),
    ("mnist", "elu_net"): (
        ("erm", 1.00, 0.99, 1.00, 0.99, 0.9900, 0.9867, 0.9900, 0.9867, math.inf),
        ("fgm_l2", 0.98, 0.97, 1.00, 0.97, 0.9560, 0.9662, 0.9800, 0.9740, 4.0),
        ("pgm_l2", 0.99, 0.97, 1.00, 0.97, 0.9660, 0.9732, 0.9800, 0.9739, 4.0),
        ("wrm", 0.95, 0.92, 0.95, 0.93, 0.9020, 0.9216, 0.9160, 0.9268, 4.0),
    ),
    ("mnist", "mlp1"): (
        ("erm", 1.00, 0.98, 1.00, 0.98, 0.9820, 0.9813, 0.9820, 0.9813, math.inf),
        ("fgm_l2", 0.88, 0.88, 1.00, 0.96, 0.8560, 0.8762, 0.9580, 0.9593, 8.0),
        ("pgm_l2", 1.00, 0.96, 1.00, 0.96, 0.9560, 0.9577, 0.9600, 0.9585, 16.0),
        ("wrm", 0.92, 0.88, 0.92, 0.88, 0.8220, 0.8757, 0.8300, 0.8769, 8.0),
    ),
    ("mnist", "mlp2"): (
        ("erm", 1.00, 0.98, 1.00, 0.98, 0.9760, 0.9805, 0.9840, 0.9821, 2.0),
        ("fgm_l2", 0.97, 0.91, 1.00, 0.96, 0.8940, 0.9136, 0.9720, 0.9645, 8.0),
        ("pgm_l2", 1.00, 0.96, 1.00, 0.97, 0.9640, 0.9628, 0.9700, 0.9675, 4.0),
        ("wrm", 0.97, 0.88, 0.98, 0.90, 0.8340, 0.8808, 0.8780, 0.8995, 16.0),
    ),
    ("svhn_cropped", "alexnet"): (
        ("erm", 1.00, 0.93, 1.00, 0.93, 0.9220, 0.9295, 0.9220, 0.9295, math.inf),
        ("fgm_l2", 0.97, 0.76, 0.95, 0.83, 0.7420, 0.7648, 0.8380, 0.8311, 1.6),
        ("pgm_l2", 1.00, 0.78, 0.85, 0.81, 0.7700, 0.7798, 0.8160, 0.8126, 1.3),
        ("wrm", 1.00, 0.83, 0.87, 0.84, 0.8060, 0.8295, 0.8300, 0.8403, 1.3),
    ),
}
# By data set and architecture: scheme and the columns of Table 2.
_RUNTIMES: dict[tuple[str, str], tuple[tuple[str, float, float, float], ...]] = {
    ("cifar10", "alexnet"): (
        ("erm", 229, 283, 1.24),
        ("fgm_l2", 407, 463, 1.14),
        ("fgm_linf", 408, 465, 1.14),
        ("pgm_l2", 2917, 3077, 1.05),
        ("pgm_linf", 2896, 3048, 1.05),
        ("wrm", 3076, 3151, 1.02),
    ),
    ("cifar10", "elu_alexnet"): (
        ("erm", 231, 283, 1.23),
        ("fgm_l2", 410, 466, 1.14),
        ("pgm_l2", 2939, 3093, 1.05),
        ("wrm", 3094, 3150, 1.02),
    ),
    ("cifar10", "inception"): (
        ("erm", 632, 734, 1.16),
        ("pgm_l2", 9994, 6082, 0.61),
        ("pgm_linf", 9948, 6063, 0.61),
        ("wrm", 10247, 6356, 0.62),
    ),
    ("cifar10", "mlp1"): (
        ("erm", 22, 31, 1.42),
        ("fgm_l2", 25, 35, 1.43),
        ("pgm_l2", 79, 93, 1.18),
        ("wrm", 73, 86, 1.18),
    ),
    ("cifar10", "mlp2"): (
        ("erm", 23, 37, 1.59),
        ("fgm_l2", 27, 41, 1.51),
        ("pgm_l2", 91, 108, 1.19),
        ("wrm", 85, 103, 1.21),
    ),
    ("cifar10", "resnet"): (
        ("erm", 315, 547, 1.73),
        ("pgm_l2", 2994, 3300, 1.10),
        ("pgm_linf", 2980, 3300, 1.11),
        ("wrm", 3187, 3457, 1.08),
    ),
    ("mnist", "elu_net"): (
        ("erm", 55, 97, 1.76),
        ("fgm_l2", 91, 136, 1.49),
        ("pgm_l2", 614, 676, 1.10),
        ("wrm", 635, 670, 1.06),
    ),
    ("mnist", "mlp1"): (
        ("erm", 15, 24, 1.60),
        ("fgm_l2", 17, 27, 1.57),
        ("pgm_l2", 57, 71, 1.24),
        ("wrm", 51, 63, 1.24),
    ),
    ("mnist", "mlp2"): (
        ("erm", 17, 31, 1.84),
        ("fgm_l2", 20, 35, 1.77),
        ("pgm_l2", 67, 89, 1.32),
        ("wrm", 62, 81, 1.30),
    ),
    ("svhn_cropped", "alexnet"): (
        ("erm", 334, 412, 1.23),
        ("fgm_l2", 596, 676, 1.13),
        ("pgm_l2", 4270, 4495, 1.05),
        ("wrm", 4501, 4572, 1.02),
    ),
}

TABLE_1 = Table(
    "Farnia et al. 2019, Table 1",
    tuple(
        Accuracy(*network, scheme, train, test, with_train, with_test, math.isinf(beta))
        for network, rows in _ACCURACIES.items()
        for scheme, train, test, with_train, with_test, _, _, _, _, beta in rows
    ),
    dict.fromkeys(("train", "test", "bounded_train", "bounded_test"), FRACTION),
    (
        "Single-step training can score high although it generalises badly, since the "
        "attacks lead away from the predicted class.",
    ),
)
NOTEBOOKS = Table(
    "Farnia et al. 2019, released notebooks",
    tuple(
        Validated(*network, scheme, *rest)
        for network, rows in _ACCURACIES.items()
        for scheme, _, _, _, _, *rest in rows
    ),
    dict.fromkeys(
        ("validation", "test", "bounded_validation", "bounded_test"), FRACTION
    ),
)
TABLE_2 = Table(
    "Farnia et al. 2019, Table 2 (40 epochs)",
    tuple(
        Runtime(*network, scheme, seconds, bounded_seconds, ratio)
        for network, rows in _RUNTIMES.items()
        for scheme, seconds, bounded_seconds, ratio in rows
    ),
    {"seconds": "s", "bounded_seconds": "s"},
    (
        "Inception is slower without a bound in three rows; the durations without one "
        "are likely those of a network with BatchNorm, whose accuracies Table 1 does "
        "not give.",
    ),
)
TABLE_3 = Table(
    "Farnia et al. 2019, Table 3 (40 epochs)",
    tuple(
        RuntimeRatio("cifar10", architecture, scheme, ratio)
        for architecture, scheme, ratio in (
            ("alexnet", "erm", 1.11),
            ("alexnet", "fgm_l2", 1.06),
            ("alexnet", "fgm_linf", 1.11),
            ("alexnet", "pgm_l2", 1.01),
            ("alexnet", "pgm_linf", 1.11),
            ("alexnet", "wrm", 1.02),
            ("inception", "erm", 0.98),
            ("inception", "pgm_l2", 1.04),
            ("inception", "pgm_linf", 1.06),
            ("inception", "wrm", 1.03),
        )
    ),
    {},
    ("The head of the table announces two columns; only the ratio is printed.",),
)
# Fig. 10 has two of them, the ways to bound, and Fig. 11 the others.
FIGURE_11 = Table(
    "Farnia et al. 2019, Figs. 10 and 11",
    tuple(
        Regularized("cifar10", "alexnet", "pgm_l2", regularization, train, validation)
        for regularization, train, validation in (
            ("none", 1.00, 0.48),
            ("normalize", 0.92, 0.60),
            ("normalize_kernels", 1.00, 0.55),
            ("batch_norm", 1.00, 0.54),
            ("weight_decay", 0.84, 0.55),
            ("dropout", 0.99, 0.52),
        )
    ),
    {"train": FRACTION, "validation": FRACTION},
    (
        "The values are read off the figures.",
        "The paper states a dropout rate of 0.8; in the released code 0.8 is the part "
        "that is kept, and entries are dropped in the test, too.",
    ),
)
