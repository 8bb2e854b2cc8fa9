"""Norms, projections and linear maps of batches of vectors.

The leading axis of every array is the batch; the rest of an example is one vector. This
room imports no other room.
"""

from opnorm.linalg.checks import check_array, check_count, check_key
from opnorm.linalg.convolution import (
    convolution_frobenius_norm,
    convolution_map,
    kernel_matrix_norm,
    kernel_matrix_singular_values,
)
from opnorm.linalg.convolution_bounds import (
    ConvolutionBounds,
    ConvolutionNorm,
    convolution_norm,
    convolution_norm_bounds,
    convolution_upper_bound,
)
from opnorm.linalg.convolution_clipping import (
    clip_circular_singular_values,
    clip_singular_values,
)
from opnorm.linalg.convolution_spectrum import circular_singular_values
from opnorm.linalg.detach import detach
from opnorm.linalg.golub_kahan import SingularTriplets, golub_kahan
from opnorm.linalg.lanczos import (
    Eigenpairs,
    Tridiagonal,
    eigenpairs,
    lanczos,
    ritz_pairs,
)
from opnorm.linalg.linear_map import (
    LinearMap,
    adjoint_error,
    compose,
    from_matrix,
    identity,
)
from opnorm.linalg.loops import (
    canonicalize_convolutions,
    fast_convolutions,
    fori_loop,
    while_loop,
)
from opnorm.linalg.matrix_norm import MatrixNorm, matrix_norm
from opnorm.linalg.networks import (
    NetworkProgram,
    keeps_programs,
    network_program,
    output_shapes,
    place_network,
    prepare_network,
)
from opnorm.linalg.norms import (
    check_exponent,
    check_length,
    conjugate_exponent,
    dual_map,
    inner,
    norm,
    scale,
)
from opnorm.linalg.onednn import uses_onednn
from opnorm.linalg.operator_norm import OperatorNorm, operator_norm
from opnorm.linalg.project_ball_box import project_ball_box
from opnorm.linalg.projections import project_ball, project_sphere
from opnorm.linalg.quadrature import (
    Estimate,
    SpectralDensity,
    spectral_density,
    squared_frobenius_norm,
    trace,
)
from opnorm.linalg.sampling import draw, sample_ball, sample_sphere
from opnorm.linalg.typed import jit, machine_epsilon, smallest_normal
from opnorm.linalg.types import (
    ArrayShape,
    BatchFunction,
    Network,
    Options,
    Params,
    Product,
    PyTree,
    Variables,
)

__all__ = [
    "ArrayShape",
    "BatchFunction",
    "ConvolutionBounds",
    "ConvolutionNorm",
    "Eigenpairs",
    "Estimate",
    "LinearMap",
    "MatrixNorm",
    "Network",
    "NetworkProgram",
    "OperatorNorm",
    "Options",
    "Params",
    "Product",
    "PyTree",
    "SingularTriplets",
    "SpectralDensity",
    "Tridiagonal",
    "Variables",
    "adjoint_error",
    "canonicalize_convolutions",
    "check_array",
    "check_count",
    "check_exponent",
    "check_key",
    "check_length",
    "circular_singular_values",
    "clip_circular_singular_values",
    "clip_singular_values",
    "compose",
    "conjugate_exponent",
    "convolution_frobenius_norm",
    "convolution_map",
    "convolution_norm",
    "convolution_norm_bounds",
    "convolution_upper_bound",
    "detach",
    "draw",
    "dual_map",
    "eigenpairs",
    "fast_convolutions",
    "fori_loop",
    "from_matrix",
    "golub_kahan",
    "identity",
    "inner",
    "jit",
    "keeps_programs",
    "kernel_matrix_norm",
    "kernel_matrix_singular_values",
    "lanczos",
    "machine_epsilon",
    "matrix_norm",
    "network_program",
    "norm",
    "operator_norm",
    "output_shapes",
    "place_network",
    "prepare_network",
    "project_ball",
    "project_ball_box",
    "project_sphere",
    "ritz_pairs",
    "sample_ball",
    "sample_sphere",
    "scale",
    "smallest_normal",
    "spectral_density",
    "squared_frobenius_norm",
    "trace",
    "uses_onednn",
    "while_loop",
]
