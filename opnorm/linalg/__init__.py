"""linalg: maths on arrays and linear maps. Imports nothing of ours.

The leading axis of every array is the batch; the rest of an example is one vector.
"""

from opnorm.linalg.detach import detach
from opnorm.linalg.golub_kahan import SingularTriplets, golub_kahan
from opnorm.linalg.linear_map import LinearMap, compose, from_matrix
from opnorm.linalg.loops import (
    canonicalize_convolutions,
    fast_convolutions,
    fori_loop,
    while_loop,
)
from opnorm.linalg.matrix_norm import MatrixNorm, matrix_norm
from opnorm.linalg.norms import (
    check_exponent,
    check_length,
    conjugate_exponent,
    dual_map,
    inner,
    norm,
    scale,
)
from opnorm.linalg.operator_norm import OperatorNorm, operator_norm
from opnorm.linalg.projections import (
    project_ball,
    project_ball_box,
    project_sphere,
    sample_ball,
    sample_sphere,
)

__all__ = [
    "LinearMap",
    "MatrixNorm",
    "OperatorNorm",
    "SingularTriplets",
    "canonicalize_convolutions",
    "check_exponent",
    "check_length",
    "compose",
    "conjugate_exponent",
    "detach",
    "dual_map",
    "fast_convolutions",
    "fori_loop",
    "from_matrix",
    "golub_kahan",
    "inner",
    "matrix_norm",
    "norm",
    "operator_norm",
    "project_ball",
    "project_ball_box",
    "project_sphere",
    "sample_ball",
    "sample_sphere",
    "scale",
    "while_loop",
]
