"""Optax optimisers by name, with the papers' conventions."""

import jax
import optax

from opnorm.linalg import Params, PyTree
from opnorm.training import plan as plans
from opnorm.training.config import Config
from opnorm.training.plan import Plan


def create(config: Config, plan: Plan) -> optax.GradientTransformation:
    """Builds the optimiser of a run.

    As in PyTorch, which the papers used, weight decay is an L2 term added to the
    gradient before momentum or normalisation, and RMSprop averages with 0.99 and adds
    its epsilon outside the square root.

    Args:
      config: a validated configuration.
      plan: its steps, for the learning rate.
    """
    rate = plans.schedule(config, plan)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay > 0:
        mask = None if config.decayed == "all" else _without_biases
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    if config.optimizer == "sgd":
        momentum = config.momentum or None
        parts.append(optax.sgd(rate, momentum=momentum, nesterov=config.nesterov))
    elif config.optimizer == "rmsprop":
        parts.append(optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False))
    else:
        parts.append(optax.adam(rate))
    return optax.chain(*parts)


def _without_biases(params: Params) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "bias" not in jax.tree_util.keystr(path[-1:]), params
    )
