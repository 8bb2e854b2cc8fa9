"""Tables of Roth, Kilcher & Hofmann, "Adversarial Training is a Form of Data-dependent
Operator Norm Regularization", NeurIPS 2020.

The paper gives lengths without their unit; its released code works with pixels in
[-1, 1], so that a length in [0, 1] pixel units is half of a length here. Table 1 holds
closed forms and no results.
"""

from typing import NamedTuple

from opnorm.papers.table import FRACTION, Table

_PIXELS = "pixels in [-1, 1]"


class Trained(NamedTuple):
    """A network of Table 2.

    Attributes:
      architecture: "cnn7" or "wrn28", the WideResNet-28-10.
      method: "standard", "at_l2", "at_linf", "snr", "onr_linf" or "global_snr".
      accuracy: on clean images.
      epsilon: length of the perturbation in training.
      weight: lambda.
      num_steps: iterations of the attack or of the power method; several where the
        paper gives several for one row.
    """

    architecture: str
    method: str
    accuracy: float
    epsilon: float | None = None
    weight: float | None = None
    num_steps: tuple[int, ...] = ()


class Searched(NamedTuple):
    """The values that Table 3 says were searched.

    Attributes:
      epsilon_l2, epsilon_linf: lengths of adversarial training.
      step_ratio: step size of adversarial training, in units of epsilon / iterations.
      num_steps: iterations of adversarial training and of data-dependent SNR.
      weight: lambda of global and of data-dependent SNR.
      global_num_steps: iterations of global SNR.
    """

    epsilon_l2: tuple[float, ...]
    epsilon_linf: tuple[float, ...]
    step_ratio: tuple[float, ...]
    num_steps: tuple[int, ...]
    weight: tuple[float, ...]
    global_num_steps: tuple[int, ...]


TABLE_2 = Table(
    "Roth et al. 2020, Table 2 (CIFAR-10)",
    (
        Trained("cnn7", "standard", 0.935),
        Trained("cnn7", "at_l2", 0.836, 1.75, num_steps=(10,)),
        Trained("cnn7", "at_linf", 0.829, 8 / 255, num_steps=(10,)),
        Trained("cnn7", "snr", 0.846, 1.75, 3e-2, (10,)),
        Trained("cnn7", "onr_linf", 0.830, 8 / 255, 3e-2, (10,)),
        Trained("cnn7", "global_snr", 0.815, None, 3e-4, (1, 10)),
        Trained("wrn28", "standard", 0.963),
        Trained("wrn28", "at_l2", 0.918, 1.75, num_steps=(10,)),
        Trained("wrn28", "snr", 0.913, 1.75, 3e-1, (10,)),
    ),
    {"accuracy": FRACTION, "epsilon": _PIXELS},
    (
        "The two text columns of the table were interleaved in the source; which "
        "hyperparameters are of which row was reconstructed.",
        "The released code has no 1/2 in front of its penalties, so that lambda may "
        "be half of lambda in the paper's formulas.",
        "The released code's length of 1.75 is 8/255 sqrt(3072) = 1.739.",
    ),
)
TABLE_3 = Table(
    "Roth et al. 2020, Table 3",
    (
        Searched(
            # 2.25 is absent in the paper.
            epsilon_l2=(
                *(0.5, 0.75, 1, 1.25, 1.5, 1.75, 2),
                *(2.5, 2.75, 3, 3.25, 3.5, 3.75, 4),
            ),
            epsilon_linf=tuple(k / 255 for k in range(1, 19)),
            step_ratio=(1, 2, 3, 4, 5),
            num_steps=(1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 50),
            weight=(
                *(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
                *(0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            ),
            global_num_steps=(1, 10),
        ),
    ),
    {"epsilon_l2": _PIXELS, "epsilon_linf": _PIXELS},
    ("The paper prints the values of each axis, and not that their product was used.",),
)
