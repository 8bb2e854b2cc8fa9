"""The phase, epoch and learning rate of each step of a run.

A plan is a pure function of the configuration and the number of examples, so a run
that goes on after an interruption needs the number of the step alone.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax

from opnorm import data
from opnorm.training import notation
from opnorm.training.config import Config

# Default size of streamed images.
IMAGE_SIZE = 224
# The state counts steps in 32 bits.
_LARGEST_STEP = 2**31 - 1


class Phase(NamedTuple):
    """Epochs whose batches are of one size.

    Attributes:
      first_epoch: the number of its first epoch.
      first_step: the number of its first step.
      steps_per_epoch: whole batches in an epoch.
      batch_size: examples per update.
      image_size: height and width of streamed images; None for data in memory.
      least_area: least part of a streamed image that a random crop takes.
    """

    first_epoch: int
    first_step: int
    steps_per_epoch: int
    batch_size: int
    image_size: int | None
    least_area: float


class Plan(NamedTuple):
    """The steps of a run.

    Attributes:
      phases: in order.
      epochs: number of epochs of the whole run.
      num_examples: in the training set.
    """

    phases: tuple[Phase, ...]
    epochs: int
    num_examples: int

    @property
    def total_steps(self) -> int:
        """Number of updates of the whole run."""
        last = self.phases[-1]
        epochs = self.epochs - last.first_epoch
        return last.first_step + epochs * last.steps_per_epoch

    def phase(self, step: int) -> Phase:
        """Returns the phase of the step with this number."""
        return [phase for phase in self.phases if phase.first_step <= step][-1]

    def end(self, phase: Phase) -> int:
        """Returns the number of the first step after a phase."""
        later = [p.first_step for p in self.phases if p.first_step > phase.first_step]
        return later[0] if later else self.total_steps

    def epochs_done(self, steps: int) -> float:
        """Returns the number of epochs that the first ``steps`` updates make."""
        phase = self.phase(steps)
        return phase.first_epoch + (steps - phase.first_step) / phase.steps_per_epoch

    def examples_done(self, steps: int) -> int:
        """Returns the number of examples in the first ``steps`` batches."""
        return sum(
            max(0, min(steps, self.end(phase)) - phase.first_step) * phase.batch_size
            for phase in self.phases
        )

    def step_at(self, epoch: float) -> int:
        """Returns the number of the step at an epoch, which need not be whole."""
        phase = [phase for phase in self.phases if phase.first_epoch <= epoch][-1]
        inside = (epoch - phase.first_epoch) * phase.steps_per_epoch
        return phase.first_step + round(inside)

    def is_end_of_epoch(self, steps: int) -> bool:
        """Whether an epoch ends with the first ``steps`` updates."""
        phase = self.phase(steps - 1)
        return (steps - phase.first_step) % phase.steps_per_epoch == 0

    def is_due(self, steps: int, every: int) -> bool:
        """Whether to measure the network after the first ``steps`` updates.

        Args:
          steps: number of updates done.
          every: number of epochs between measurements; there is one after the last
            update in any case, and none at all for 0.
        """
        if not every or not self.is_end_of_epoch(steps):
            return False
        epochs = round(self.epochs_done(steps))
        return epochs % every == 0 or steps == self.total_steps

    def indices(self, seed: int, step: int) -> np.ndarray:
        """Returns the examples in the batch of a step, ``(batch_size,)`` int64."""
        phase = self.phase(step)
        # Counts as if all epochs before had as many steps, so only the epoch matters.
        inside = phase.first_epoch * phase.steps_per_epoch + step - phase.first_step
        return data.batch_indices(seed, inside, phase.batch_size, self.num_examples)


def make(config: Config, num_examples: int) -> Plan:
    """Makes the plan of a validated configuration.

    Args:
      config: the run.
      num_examples: in the training set.

    Raises:
      ValueError: if a batch is larger than the training set, or there are too many
        steps.
    """
    streamed = data.is_streamed(config.dataset)
    size = (config.image_size or IMAGE_SIZE) if streamed else None
    sizes = [(0, size, config.batch_size, config.least_area)]
    if config.phases:
        sizes = list(notation.parse_phases(config.phases))
    phases: list[Phase] = []
    step = 0
    for number, (first, image_size, batch_size, area) in enumerate(sizes):
        per_epoch = data.steps_per_epoch(batch_size, num_examples)
        phases.append(Phase(first, step, per_epoch, batch_size, image_size, area))
        last = sizes[number + 1][0] if number + 1 < len(sizes) else config.epochs
        step += (last - first) * per_epoch
    if step > _LARGEST_STEP:
        raise ValueError(
            f"epochs is {config.epochs}; with {num_examples} examples these are {step} "
            f"steps, and there may be at most {_LARGEST_STEP}."
        )
    return Plan(tuple(phases), config.epochs, num_examples)


def largest_shape(
    train_set: data.Dataset | data.Stream, plan: Plan
) -> tuple[int, int, int]:
    """Returns ``(H, W, C)`` of the largest images that a run sees.

    Raises:
      ValueError: for examples that are no images of bytes.
    """
    if isinstance(train_set, data.Dataset):
        if train_set.images.dtype != np.uint8:
            raise ValueError(
                f"dataset is {train_set.name!r}, with {train_set.images.dtype} "
                f"examples of shape {train_set.image_shape}; networks are trained on "
                "images (H, W, C) of uint8."
            )
        height, width, channels = train_set.image_shape
        return height, width, channels
    size = max(phase.image_size or IMAGE_SIZE for phase in plan.phases)
    return size, size, 3


def check_devices(plan: Plan, num_devices: int, accumulation_steps: int) -> None:
    """Raises a ValueError unless devices and parts divide the batch of every phase."""
    for phase in plan.phases:
        if phase.batch_size % (num_devices * accumulation_steps):
            raise ValueError(
                f"batch_size is {phase.batch_size}; it must be a multiple of the "
                f"number of devices, {num_devices}, times accumulation_steps, "
                f"{accumulation_steps}."
            )


def schedule(config: Config, plan: Plan) -> optax.Schedule:
    """Builds the learning rate of a validated configuration as a function of the step.

    Args:
      config: the run.
      plan: its steps.
    """
    base: optax.Schedule
    if config.schedule == "cosine":
        base = optax.cosine_decay_schedule(config.learning_rate, plan.total_steps)
    elif config.schedule == "step":
        drops: dict[int, float] = {}
        for step in _milestones(config, plan):
            drops[step] = drops.get(step, 1.0) * config.decay_factor
        base = optax.piecewise_constant_schedule(config.learning_rate, drops)
    elif config.schedule == "linear":
        points = notation.parse_rates(config.learning_rates or "")
        base = _through([(plan.step_at(epoch), rate) for epoch, rate in points])
    else:
        base = optax.constant_schedule(config.learning_rate)
    warmup = plan.step_at(config.warmup_epochs)
    if warmup == 0:
        return base
    ramp = optax.linear_schedule(0.0, 1.0, warmup)
    # The first update counts as one: a rate of zero would waste it.
    return lambda step: base(step) * ramp(step + 1)


def check_extension(before: Config, config: Config, plan: Plan) -> None:
    """Raises a ValueError unless added epochs leave the steps before as they were.

    A step is then what it would be in a run that had all epochs from the beginning.

    Args:
      before: the run with the epochs that it had.
      config: the same run with more epochs, and perhaps other milestones or
        learning_rates.
      plan: the plan of ``config``.
    """
    planned = make(before, plan.num_examples)
    steps = np.arange(planned.total_steps)
    rates = [
        np.broadcast_to(schedule(c, p)(steps), steps.shape)
        for c, p in ((before, planned), (config, plan))
    ]
    differing = np.flatnonzero(rates[0] != rates[1])
    if len(differing):
        raise ValueError(
            f"epochs is {before.epochs} in the run and {config.epochs} here, and the "
            f"learning rate of schedule {config.schedule!r} would then have differed "
            f"from step {differing[0] + 1} on; keep the {before.epochs} epochs, or "
            "start another run from this one with init_from. Epochs can be added under "
            "the schedule 'constant', 'step' with milestones, and 'linear' with points "
            "behind the others."
        )


def _milestones(config: Config, plan: Plan) -> list[int]:
    if config.milestones is None:
        return [plan.total_steps // 2, plan.total_steps * 3 // 4]
    return [
        plan.step_at(epoch) for epoch in notation.parse_milestones(config.milestones)
    ]


def _through(points: Sequence[tuple[int, float]]) -> optax.Schedule:
    """Returns straight lines between (step, rate); two at one step are a jump."""
    pieces, starts = [], []
    for (start, rate), (end, last) in itertools.pairwise(points):
        if end > start:
            pieces.append(optax.linear_schedule(rate, last, end - start))
            starts.append(start)
    return optax.join_schedules(pieces, starts[1:])


def image_size(config: Config, dataset: str | None = None) -> int | None:
    """Returns the size of images that a trained network takes; None for the data's own.

    Args:
      config: the configuration of the training.
      dataset: name of the data set that it is applied to; None for its training set.
    """
    if not data.is_streamed(dataset or config.dataset):
        # Streamed images are resized to `image_size`; images in memory are not.
        return None if data.is_streamed(config.dataset) else config.image_size
    if config.phases:
        return notation.parse_phases(config.phases)[-1][1]
    return config.image_size or IMAGE_SIZE
