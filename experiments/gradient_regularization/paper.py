"""The rows of Finlay & Oberman's tables under the names that --rows gives them.

The numbers are in :mod:`opnorm.papers.finlay`; nothing here was measured.
"""

import math
from typing import NamedTuple

from experiments.common.records import Record
from experiments.gradient_regularization.networks import Row
from opnorm import data, papers

# On ImageNet lambda is in units of pixels divided by these; in pixel units it is less
# by their mean square.
_MEAN_SQUARE = math.fsum(s * s for s in (0.229, 0.224, 0.225)) / 3
_SETTINGS = {
    (papers.finlay.CIFAR10, "Linf"): "Table 1: CIFAR-10, ResNeXt34-2x32, 200 epochs",
    (
        papers.finlay.CIFAR10,
        "L2",
    ): "Tables 2 and 3: CIFAR-10, ResNeXt34-2x32, 200 epochs",
    (
        papers.finlay.IMAGENET,
        "Linf",
    ): "Table 1: ImageNet, ResNet-50, top-5 error; gradient "
    "rows with the squared 2-norm",
    (
        papers.finlay.IMAGENET,
        "L2",
    ): "Tables 2 and 3: ImageNet, ResNet-50, top-5 error; lambda "
    "0.1 and 1 in units of standardised pixels",
}


class Printed(NamedTuple):
    """A row as results.json holds it: of Table 1 (Linf), or of Tables 2 and 3 (L2).

    Attributes:
      name: name of the network in --rows.
      clean_error, distance, ratio, hours: as in :class:`opnorm.papers.finlay.Linf`.
      error_at: errors by distance, Table 1 only.
      lipschitz, curvature: mean bounds, Table 2 only.
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
    hessian: tuple[float | None, float | None] | None = None


def printed(test_set: data.Dataset, norm: str) -> Record | None:
    """Returns the paper's rows for the data that were measured, None if it has none.

    Args:
      test_set: the data.
      norm: "L2" or "Linf".

    Returns:
      "setting": tables, data and network; "rows": values of :class:`Printed`;
      "epsilons": the distances of "error_at".
    """
    if test_set.name in ("cifar10", "cifar10_mini"):
        dataset = papers.finlay.CIFAR10
    elif test_set.num_classes == 1000:
        dataset = papers.finlay.IMAGENET
    else:
        return None
    rows = _linf(dataset) if norm == "Linf" else _l2(dataset)
    return {
        "setting": f"Finlay & Oberman 2019, {_SETTINGS[dataset, norm]}",
        "rows": rows,
        "epsilons": papers.finlay.EPSILONS if norm == "Linf" else (),
    }


def _linf(dataset: str) -> list[Printed]:
    return [
        _shared(row, math.inf)._replace(error_at=row.error_at)
        for row in papers.finlay.TABLE_1.select(dataset=dataset)
    ]


def _l2(dataset: str) -> list[Printed]:
    regularity = {row[:4]: row for row in papers.finlay.TABLE_3.rows}
    rows = []
    for row in papers.finlay.TABLE_2.select(dataset=dataset):
        printed = _shared(row, 2.0)._replace(
            lipschitz=row.lipschitz, curvature=row.curvature
        )
        if found := regularity.get(row[:4]):
            printed = printed._replace(slope=(found.mean_slope, found.max_slope))
            if row.smooth:
                hessian = (found.mean_curvature, found.max_curvature)
                printed = printed._replace(hessian=hessian)
        rows.append(printed)
    return rows


def _shared(row: papers.finlay.Linf | papers.finlay.L2, p: float) -> Printed:
    """The columns that both norms have."""
    name = _name(row, p)
    return Printed(name, row.clean_error, row.distance, row.ratio, row.hours)


def _name(row: papers.finlay.Linf | papers.finlay.L2, p: float) -> str:
    """The name of a row in --rows where the networks are measured in the norm p."""
    weight, trained = row.weight, None
    if row.method == papers.finlay.ADVERSARIAL:
        trained = math.inf
    if weight is not None:
        # The paper trains against Linf, with the 1-norm, on CIFAR-10 only.
        trained = p if row.dataset == papers.finlay.CIFAR10 else 2.0
        weight *= 1.0 if row.dataset == papers.finlay.CIFAR10 else _MEAN_SQUARE
    return Row(row.method, weight, trained, row.smooth).name(p)
