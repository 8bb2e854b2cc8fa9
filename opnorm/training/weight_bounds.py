"""Bounds on the layers' spectral norms, for any method and network.

A bound by division is a part of the network: the method, its searches and attacks get
the divided parameters, and the state holds the kernels underneath and the persistent
vectors. The network of a run, kept and measured, is the divided one. A bound by
clipping changes the parameters between epochs, outside of the method.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from opnorm import linalg, regularizers
from opnorm.linalg import Params, PyTree
from opnorm.training import methods
from opnorm.training.config import Config
from opnorm.training.methods import Auxiliary, Batch, Method
from opnorm.training.modes import Modes

_FORMS = {"normalize": "operator", "normalize_kernels": "kernel"}


def divides(config: Config) -> bool:
    """Whether the trained network has other parameters than those that are updated."""
    bounded = config.spectral_norm_bound is not None
    return bounded and config.spectral_norm_method in _FORMS


def create(config: Config, modes: Modes, image_shape: tuple[int, ...]) -> Method:
    """Returns the method that a validated configuration names, on bounded parameters.

    Args:
      config: the configuration of the run.
      modes: modes of the network to be trained.
      image_shape: ``(H, W, C)`` of the largest images that the network sees: the norm
        of a convolution grows with the image.
    """
    method = methods.create(config, modes)
    bound = config.spectral_norm_bound
    if bound is None or not divides(config):
        return method
    form = _FORMS[config.spectral_norm_method]
    layers = modes.layers(image_shape)

    def normalize(params: Params, state: PyTree) -> regularizers.NormalizedParameters:
        return regularizers.spectral_normalize(
            params,
            layers,
            state["spectral_vectors"],
            bound=bound,
            form=form,
            num_steps=config.spectral_norm_steps,
        )

    @linalg.jit()
    def init_vectors(params: Params, key: jax.Array) -> PyTree:
        return regularizers.init_spectral_vectors(params, layers, key, form=form)

    def init(
        params: Params, key: jax.Array, num_examples: int, num_classes: int
    ) -> PyTree:
        method_key, vectors_key = jax.random.split(key)
        inner = method.init(params, method_key, num_examples, num_classes)
        vectors = init_vectors(params, vectors_key)
        return {"method": inner, "spectral_vectors": vectors}

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        found = normalize(params, state)
        value, auxiliary = method.loss(
            found.params, batch_stats, state["method"], batch, key
        )
        largest = jnp.stack(list(found.norms.values())).max()
        return value, auxiliary._replace(
            method_state={
                "method": auxiliary.method_state,
                "spectral_vectors": found.vectors,
            },
            metrics=auxiliary.metrics | {"largest_norm": largest},
        )

    @linalg.jit()
    def deploy(params: Params, state: PyTree) -> Params:
        # The estimate is refined once more, as in the next training step.
        return normalize(params, state).params

    return Method(init, loss, deploy)


def clipping(
    config: Config, modes: Modes, image_shape: tuple[int, ...]
) -> Callable[[Params], Params] | None:
    """Returns the change of the parameters after an epoch, or None if there is none.

    Args:
      config: the configuration of the run.
      modes: modes of the network to be trained.
      image_shape: as for :func:`create`.
    """
    bound = config.spectral_norm_bound
    if bound is None or divides(config):
        return None
    layers = modes.layers(image_shape)
    if config.spectral_norm_method == "clip":
        return lambda params: regularizers.clip_spectral_norms(params, layers, bound)
    return lambda params: regularizers.clip_spectral_norms(
        params, layers, bound, num_iterations=1, rescale=False
    )
