"""training: optax optimisers and schedules by name, with the papers' conventions."""

import optax

from opnorm.training.config import Config


def create(config: Config, total_steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a run.

    As in PyTorch, which the papers used, weight decay is an L2 term added to the
    gradient before momentum or normalisation, and RMSprop averages with 0.99 and adds
    its epsilon outside the square root.

    Args:
      config: a validated configuration.
      total_steps: steps of the whole run, for the schedule.
    """
    rate = schedule(config, total_steps)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "sgd":
        parts.append(optax.sgd(rate, momentum=config.momentum or None))
    elif config.optimizer == "rmsprop":
        parts.append(optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False))
    else:
        parts.append(optax.adam(rate))
    return optax.chain(*parts)


def schedule(config: Config, total_steps: int) -> optax.Schedule:
    """Builds the learning rate as a function of the step."""
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, total_steps)
    if config.schedule == "step":
        drops = {total_steps // 2: 0.1, total_steps * 3 // 4: 0.1}
        return optax.piecewise_constant_schedule(config.learning_rate, drops)
    return optax.constant_schedule(config.learning_rate)
