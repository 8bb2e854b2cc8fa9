"""Tables of "Towards Understanding the Regularization of Adversarial Robustness on
Neural Networks", submission to ICLR 2020.

Lengths are in levels of 255 and are measured in Linf. Losses are cross-entropies.
"""

from typing import NamedTuple

from opnorm.papers.table import FRACTION, NATS, Table

_LEVELS = "levels of 255"


class LossVariation(NamedTuple):
    """A cell of Table 1: the largest rise of the loss under an attack.

    Attributes:
      dataset: "cifar10" or "cifar100", with ResNet-56.
      attacked_with: length of the attack.
      trained_with: length of the attack in training.
      mean, standard_deviation: over the test images.
    """

    dataset: str
    attacked_with: int
    trained_with: int
    mean: float
    standard_deviation: float


class Generalization(NamedTuple):
    """A network of Tables 2 to 6 on clean training and test images.

    Attributes:
      dataset: "cifar10", "cifar100" or "tiny_imagenet".
      architecture: "resnet56", "resnet110" or "wrn50_2".
      bound: to which the layers' spectral norms are clipped; None without clipping.
      trained_with: length of the attack in training; 0 for training without one.
      train_accuracy, test_accuracy: on clean images.
      accuracy_gap: of the two.
      train_loss, test_loss: on clean images.
      loss_gap: of the two.
      robust: accuracy under PGD (length 8, 10 steps of 2) of the test images that are
        correct without it.
    """

    dataset: str
    architecture: str
    bound: float | None
    trained_with: int
    train_accuracy: float | None
    test_accuracy: float
    accuracy_gap: float | None
    train_loss: float
    test_loss: float
    loss_gap: float
    robust: float | None


class SpreadChange(NamedTuple):
    """Appendix B.2: the change of the layers' spreads from one network to another.

    The spread of a layer is the standard deviation of its singular values.

    Attributes:
      dataset: "cifar10" or "cifar100", with ResNet-56, which has 55 convolutions.
      first, second: lengths of the attack in training of the two networks.
      fall: sum of the falls over the layers.
      mean_fall: mean of the falls.
      num_fallen: number of layers whose spread falls.
      rise: sum of the rises.
      mean_rise: mean of the rises.
      num_risen: number of layers whose spread rises.
    """

    dataset: str
    first: int
    second: int
    fall: float
    mean_fall: float
    num_fallen: int
    rise: float
    mean_rise: float
    num_risen: int


_Printed = tuple[int, float, float, float, float, float, float, float]
_UNITS = {
    "trained_with": _LEVELS,
    "train_accuracy": FRACTION,
    "test_accuracy": FRACTION,
    "accuracy_gap": FRACTION,
    "train_loss": NATS,
    "test_loss": NATS,
    "loss_gap": NATS,
    "robust": FRACTION,
}
_SCALE = (
    "The accuracies are higher than others report for these lengths; the lengths may "
    "be of standardised pixels."
)
_TREND = (
    "ResNet-56 trained with 4 resists PGD in 65.92 % of the images, more than trained "
    "with 8, against the trend of all other rows; the value may be a misprint."
)


def _trained(
    dataset: str, architecture: str, bound: float | None, *rows: _Printed
) -> tuple[Generalization, ...]:
    return tuple(Generalization(dataset, architecture, bound, *row) for row in rows)


TABLE_1 = Table(
    "regularization view, Table 1",
    tuple(
        LossVariation(dataset, attacked_with, trained_with, *cell)
        for dataset, rows in {
            "cifar10": (
                (1, (0.0273, 0.0989), (0.0236, 0.0778), (0.0215, 0.0588)),
                (2, (0.0590, 0.1637), (0.0477, 0.1337), (0.0443, 0.1102)),
                (4, (0.1337, 0.2494), (0.1006, 0.2137), (0.0888, 0.1816)),
            ),
            "cifar100": (
                (1, (0.0550, 0.1276), (0.0430, 0.1043), (0.0379, 0.0886)),
                (2, (0.1072, 0.2138), (0.0839, 0.1802), (0.0732, 0.1568)),
                (4, (0.1868, 0.2946), (0.1563, 0.2712), (0.1355, 0.2494)),
            ),
        }.items()
        for attacked_with, *cells in rows
        for trained_with, cell in zip((4, 8, 16), cells, strict=True)
    ),
    {
        "attacked_with": _LEVELS,
        "trained_with": _LEVELS,
        "mean": NATS,
        "standard_deviation": NATS,
    },
    (
        "The values are small for a cross-entropy; they may be of probabilities.",
        "The head of the table is shifted in the source.",
        _SCALE,
    ),
)
# ResNet-56, trained with FGSM.
TABLE_2 = Table(
    "regularization view, Table 2",
    tuple(
        Generalization(
            *(dataset, "resnet56", None, level, None, test, None),
            *(train_loss, test_loss, loss_gap, None),
        )
        for dataset, rows in {
            "cifar10": (
                (4, 0.8932, 0.038, 0.467, 0.429),
                (8, 0.8667, 0.086, 0.495, 0.409),
                (16, 0.8283, 0.252, 0.637, 0.385),
            ),
            "cifar100": (
                (4, 0.6201, 0.469, 1.776, 1.307),
                (8, 0.5978, 0.656, 1.723, 1.067),
                (16, 0.5630, 0.822, 1.797, 0.975),
            ),
        }.items()
        for level, test, train_loss, test_loss, loss_gap in rows
    ),
    _UNITS,
    (_SCALE,),
)
TABLE_3 = Table(
    "regularization view, Table 3",
    (
        *_trained(
            "cifar10",
            "resnet56",
            None,
            (4, 0.9951, 0.8886, 0.1065, 0.014, 0.683, 0.669, 0.6592),
            (8, 0.9845, 0.8751, 0.1094, 0.043, 0.649, 0.606, 0.6524),
            (16, 0.9597, 0.8489, 0.1108, 0.105, 0.650, 0.545, 0.7216),
        ),
        *_trained(
            "cifar10",
            "resnet110",
            None,
            (4, 0.9995, 0.8920, 0.1075, 0.002, 0.825, 0.823, 0.5802),
            (8, 0.9962, 0.8709, 0.1253, 0.010, 0.813, 0.803, 0.6694),
            (16, 0.9842, 0.8502, 0.1340, 0.044, 0.729, 0.685, 0.7240),
        ),
    ),
    _UNITS,
    (_SCALE, _TREND),
)
TABLE_4 = Table(
    "regularization view, Table 4",
    (
        *_trained(
            "cifar100",
            "resnet56",
            None,
            (4, 0.8873, 0.6131, 0.2742, 0.357, 2.063, 1.706, 0.3052),
            (8, 0.8697, 0.6087, 0.2610, 0.413, 2.106, 1.693, 0.4099),
            (16, 0.8217, 0.5943, 0.2274, 0.570, 1.978, 1.408, 0.4881),
        ),
        *_trained(
            "cifar100",
            "resnet110",
            None,
            (4, 0.9691, 0.6148, 0.3543, 0.098, 2.645, 2.547, 0.3333),
            (8, 0.9455, 0.6126, 0.3329, 0.171, 2.413, 2.241, 0.4208),
            (16, 0.9090, 0.5956, 0.3134, 0.278, 2.323, 2.045, 0.5099),
        ),
    ),
    _UNITS,
    ("The head of the table is shifted in the source.", _SCALE),
)
TABLE_5 = Table(
    "regularization view, Table 5",
    (
        *_trained(
            "tiny_imagenet",
            "wrn50_2",
            None,
            (0, 0.7912, 0.6343, 0.1569, 0.874, 1.561, 0.687, 0.0000),
            (4, 0.7371, 0.6209, 0.1162, 1.080, 1.637, 0.557, 0.3226),
            (8, 0.6617, 0.6109, 0.0508, 1.384, 1.689, 0.305, 0.4120),
            (16, 0.6073, 0.5736, 0.0337, 1.641, 1.806, 0.165, 0.5312),
        ),
    ),
    _UNITS,
    (_SCALE,),
)
# Spectral norms are clipped after every epoch.
TABLE_6 = Table(
    "regularization view, Table 6",
    (
        *_trained(
            "cifar10",
            "resnet56",
            1.0,
            (4, 0.9691, 0.9047, 0.0644, 0.092, 0.316, 0.224, 0.5793),
            (8, 0.9438, 0.8887, 0.0551, 0.159, 0.353, 0.194, 0.6998),
            (16, 0.9058, 0.8582, 0.0476, 0.265, 0.432, 0.168, 0.7598),
        ),
        *_trained(
            "cifar10",
            "resnet56",
            3.0,
            (4, 0.9965, 0.9002, 0.0963, 0.010, 0.606, 0.596, 0.5683),
            (8, 0.9851, 0.8807, 0.1044, 0.039, 0.580, 0.541, 0.6773),
            (16, 0.9594, 0.8543, 0.1051, 0.107, 0.577, 0.470, 0.7341),
        ),
        *_trained(
            "cifar10",
            "resnet56",
            5.0,
            (4, 0.9957, 0.8953, 0.1004, 0.012, 0.649, 0.638, 0.5491),
            (8, 0.9833, 0.8809, 0.1024, 0.045, 0.602, 0.557, 0.6596),
            (16, 0.9596, 0.8532, 0.1064, 0.105, 0.611, 0.506, 0.7237),
        ),
        *TABLE_3.select(architecture="resnet56"),
    ),
    _UNITS,
    (_SCALE, _TREND),
)
# The paper does not state the matrix of a convolution.
APPENDIX_B_2 = Table(
    "regularization view, Appendix B.2",
    (
        SpreadChange("cifar10", 4, 16, 4.7465, 0.1158, 41, 0.4372, 0.0312, 14),
        SpreadChange("cifar100", 4, 16, 3.7511, 0.09618, 39, 0.4372, 0.1103, 16),
    ),
    {"first": _LEVELS, "second": _LEVELS},
    (
        "The sum of the rises for CIFAR-100 equals that for CIFAR-10 and does not fit "
        "the mean beside it, which 16 layers would have at a sum of 1.765.",
        _SCALE,
    ),
)
