"""Layers of NNX and Linen whose operator norm is bounded while they are trained.

Both wrappers divide the kernel by the factor by which the norm of the linear map, with
its strides and padding, exceeds the bound. The division is a part of the layer, so
gradients flow through it. Its power vectors are kept between the calls.

The spectral norm of the kernel matrix, which other libraries divide by, is another
number: the norm of a convolution may exceed it by the root of the number of taps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from opnorm import linalg, operators
from opnorm.linalg import PyTree
from opnorm.regularizers.spectral_normalization import (
    NormalizedParameters,
    init_spectral_vectors,
    spectral_normalize,
)

# JAX does not state the types of Partial.
_partial: Callable[..., Callable[[jax.Array], Any]] = jax.tree_util.Partial
# Power steps before the first call. A random vector underestimates the norm.
_FIRST_STEPS = 20


class SpectralNorm(nnx.Module):
    """A layer of NNX whose operator norm is kept at ``bound`` or below.

    In training mode each call refines the power vectors and stores them, as variables
    of the type ``nnx.BatchStat``. In evaluation mode (``module.eval()``) nothing is
    stored, and a call depends on its argument alone. The power vectors lag behind fast
    updates of the kernel, and the norm is estimated from below, so it may exceed the
    bound by some per cent; :meth:`refine` removes the difference.

    Attributes:
      layer: the wrapped layer, with the trained kernel.
      vectors: the power vector of each linear layer, by name.
      use_running_average: whether the module is in evaluation mode.

    Args:
      layer: a module whose parameters include the kernel of ``nnx.Conv``,
        ``nnx.ConvTranspose``, ``nnx.Linear`` or another linear layer; several layers in
        one module are bounded each.
      input_shape: the shape of an example that the layer is called on, such as
        ``(H, W, C)``. The norm of a convolution depends on it.
      bound: the largest norm, positive; a smaller norm is not changed.
      num_steps: power steps in each call, at least 1.
      rngs: the stream ``params`` draws the first vectors.

    Raises:
      ValueError: for a bound or a number of steps out of range, a module without linear
        layers, one that computes its kernel, or a call on another shape.

    Source: Farnia et al. 2019, Algorithm 1; Miyato et al. 2018 for the persistent
    vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from opnorm import regularizers
      >>> rngs = nnx.Rngs(0)
      >>> linear = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
      >>> linear.kernel[...] = jnp.diag(jnp.array([4.0, 2.0]))
      >>> layer = regularizers.SpectralNorm(linear, (2,), rngs=rngs)
      >>> layer.eval()
      >>> print(layer(jnp.eye(2)).round(3))
      [[1.  0. ]
       [0.  0.5]]
    """

    def __init__(
        self,
        layer: nnx.Module,
        input_shape: tuple[int, ...],
        *,
        bound: float = 1.0,
        num_steps: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        _check(bound, num_steps)
        self.layer = layer
        self.input_shape = tuple(input_shape)
        self.bound = bound
        self.num_steps = num_steps
        self.use_running_average = False
        found = self._layers()
        drawn = init_spectral_vectors(
            layer, found, rngs.params(), num_steps=_FIRST_STEPS
        )
        stored = {name: nnx.BatchStat(vector) for name, vector in drawn.items()}
        self.vectors = nnx.data(stored)

    def __call__(self, x: jax.Array, **options: Any) -> Any:
        """Applies the layer with its norm bounded to a batch ``(B, *input_shape)``."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"x has shape {x.shape}; the norm is that for {self.input_shape}, so "
                f"it must be (B, {', '.join(map(str, self.input_shape))})."
            )
        found = self._normalize(self._stored(), self.num_steps)
        if not self.use_running_average:
            for name, vector in found.vectors.items():
                self.vectors[name][...] = vector
        return found.params(x, **options)

    def refine(self, num_steps: int = 100) -> None:
        """Stores more accurate power vectors, such as after training.

        Args:
          num_steps: power steps, at least 1.
        """
        linalg.check_count("num_steps", num_steps, 1)
        found = self._normalize(self._stored(), num_steps)
        for name, vector in found.vectors.items():
            self.vectors[name][...] = vector

    def norms(self) -> dict[str, jax.Array]:
        """Returns the norms of the trained kernels, before the division, by name."""
        return self._normalize(self._stored(), self.num_steps).norms

    def _stored(self) -> dict[str, jax.Array]:
        return {name: stored[...] for name, stored in self.vectors.items()}

    def _normalize(
        self, vectors: dict[str, jax.Array], num_steps: int
    ) -> NormalizedParameters:
        return spectral_normalize(
            self.layer,
            self._layers(),
            vectors,
            bound=self.bound,
            num_steps=num_steps,
        )

    def _layers(self) -> tuple[operators.Layer, ...]:
        return operators.find_layers(self.layer, _example(self.input_shape, self.layer))


class LinenSpectralNorm(nn.Module):
    """A layer of Linen whose operator norm is kept at ``bound`` or below.

    With ``train=True`` a call refines the power vectors and stores them in the
    collection "batch_stats", which must be mutable then. With ``train=False`` nothing
    is stored. The vectors lag behind fast updates, as in :class:`SpectralNorm`; a
    larger ``num_steps`` removes the difference. The parameters of the layer are those
    of the wrapper below "parameters".

    Attributes:
      layer: a layer that has parameters only, such as ``nn.Conv(8, (3, 3))``.
      bound: the largest norm, positive; a smaller norm is not changed.
      num_steps: power steps in each call, at least 1.

    Source: as :class:`SpectralNorm`.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import regularizers
      >>> layer = regularizers.LinenSpectralNorm(nn.Conv(8, (3, 3), strides=2))
      >>> x = jnp.ones((1, 6, 6, 3))
      >>> variables = layer.init(jax.random.key(0), x, train=False)
      >>> y, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, jax.tree.map(jnp.shape, state)
      ((1, 3, 3, 8), {'batch_stats': {'vectors': {'kernel': (1, 6, 6, 3)}}})
    """

    layer: nn.Module
    bound: float = 1.0
    num_steps: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        """Applies the layer with its norm bounded to a batch ``(B, ...)``.

        Args:
          x: the batch; the norm is that for the shape of its examples.
          train: whether the power vectors are stored.

        Raises:
          ValueError: as :class:`SpectralNorm`, and for a layer with other variables
            than parameters.
        """
        _check(self.bound, self.num_steps)
        layer = self.layer.clone(parent=None, name=None)

        def init(key: jax.Array) -> PyTree:
            variables = layer.init(key, x)
            if set(variables) != {"params"}:
                raise ValueError(
                    f"layer is {type(layer).__name__} with {sorted(variables)}; it "
                    "must have parameters only."
                )
            return variables["params"]

        params = self.param("parameters", init)
        f = _partial(_Apply(layer), params)
        found = operators.find_layers(f, x)
        vectors = self.variable(
            "batch_stats",
            "vectors",
            lambda: init_spectral_vectors(
                f, found, self.make_rng("params"), num_steps=_FIRST_STEPS
            ),
        )
        normalized = spectral_normalize(
            f, found, vectors.value, bound=self.bound, num_steps=self.num_steps
        )
        if train and not self.is_initializing():
            vectors.value = normalized.vectors
        return normalized.params(x)


class _Apply:
    """A layer of Linen as a function of its parameters and a batch."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, params: Mapping[str, PyTree], x: jax.Array) -> Any:
        return self.layer.apply({"params": params}, x)


def _check(bound: float, num_steps: int) -> None:
    linalg.check_length("bound", bound, positive=True)
    linalg.check_count("num_steps", num_steps, 1)


def _example(shape: tuple[int, ...], layer: nnx.Module) -> jax.Array:
    """An example in the dtype of the parameters."""
    dtypes = [
        leaf.dtype
        for leaf in jax.tree.leaves(layer)
        if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
    ]
    return jnp.zeros((1, *shape), dtypes[0] if dtypes else None)
