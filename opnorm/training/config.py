"""training: every choice that decides the result of a training run, in one place."""

import dataclasses
import types
import typing
from typing import Any

SEARCHES = ("amortized", "dense", "iterative")
VARIANTS = ("derivative", "difference")
OPTIMIZERS = ("adam", "sgd", "rmsprop")
SCHEDULES = ("constant", "cosine", "step", "linear")
COMPUTE_DTYPES = ("float32", "bfloat16")
DECAYED = ("all", "kernels_and_scales")
# Fields that decide the training set.
DATA_FIELDS = ("dataset", "data_dir", "train_examples", "random_labels", "image_size")
ATTACK_LABELS = ("true", "predicted")
SPECTRAL_NORM_METHODS = {
    "normalize": "every kernel divided by what its layer's norm exceeds the bound by, "
    "as a part of the network",
    "normalize_kernels": "the same with the norm of the kernel matrix",
    "clip": "singular values of every layer clipped after each epoch",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. Lengths (epsilon, step_size) are in [0, 1] pixel units.

    Attributes:
      dataset: a name that :func:`opnorm.data.load` knows.
      data_dir: where TensorFlow Datasets keeps its data, or None.
      train_examples: how many training examples to use, or None for all.
      random_labels: part of the training examples, in [0, 1], whose labels are drawn at
        random, once and the same ones for every seed; of data in memory.
      augment: random crop after padding by 4, and horizontal flip; of streamed data,
        random resized crop and flip, without which they are cropped at the centre.
      padding: what the crop pads with: "zero", "reflect" or "grey".
      cutout: side of the square of each picture that is painted over, 0 for none.
      image_size: height and width of streamed pictures, None for 224; of data in
        memory, the middle of each picture that is kept, None for all of it.
      least_area: least part of a streamed picture that a random crop takes, in (0, 1].
      phases: of streamed data, sizes that change during the training, as "first
        epoch:image size:batch size:least area" with commas between, such as
        "0:128:512:0.08,15:224:192:0.087"; they replace image_size, batch_size and
        least_area.
      model: a name that :func:`opnorm.models.create` knows.
      width: the model's width, or None for its own default.
      activation: "relu", "smooth_relu" or "elu".
      logit_activation: of "resnext34": the activation on the logits too, as published.
      normalization: what the network does to pixels, a name in
        :data:`opnorm.models.STATISTICS`.
      compute_dtype: what the network computes in; parameters, BatchNorm statistics,
        logits and losses are float32 in any case.
      rematerialize: compute activations again in the backward pass, for less memory.
      method: a key of :data:`opnorm.training.METHODS`.
      p: exponent of the norm of perturbations, in [1, inf].
      q: exponent of the norm of logits for "data_dependent_onr", in [1, inf].
      epsilon: length of the perturbations of attack and penalty, in [0, 1] pixel
        units.
      weight: lambda, the factor of the method's term. Its conventions are those of
        Roth et al. 2020 (Eqs. 5, 7, 13, 14): squared penalties carry a 1/2, and the
        adversarial term is added to the clean one.
      mix: of "interpolated", in [0, 1]: 0 is "adversarial", 1 "data_dependent_snr".
      difference_step: of "gradient_regularization": h, the L2 length of its finite
        difference, in [0, 1] pixel units.
      divide_by_size: of "gradient_regularization": the squared norm divided by the
        number of pixels, which Finlay & Oberman use against Linf.
      gamma: of "wrm": price of a perturbation's squared L2 length, in units of the
        cross-entropy per squared pixel unit.
      num_steps: steps of the attack, of the search with search="iterative" (power
        steps; for "dense" with exponents other than 2 steps on the dense Jacobian),
        or of "global_snr" in each update.
      step_size: step of the attack; None for 2 epsilon / num_steps.
      random_start: whether the attack starts at a random point of the ball.
      attack_labels: "true", or "predicted": the attack leads away from what the network
        takes the clean picture for.
      search: how the direction of the penalty is found; see
        :mod:`opnorm.training.methods`.
      variant: "derivative" penalises epsilon ||J v||, "difference"
        ||f(x + epsilon v) - f(x)||.
      penalty_fraction: part of each batch that the "difference" penalty is taken on, in
        (0, 1]; its mean over that part is an unbiased estimate at a lower cost.
      spectral_norm_bound: largest spectral norm of a layer, "beta" of Farnia et al.
        2019, with any method; infinity bounds nothing at the same cost, None is
        without.
      spectral_norm_method: a key of ``SPECTRAL_NORM_METHODS``: "normalize" (Farnia et
        al. 2019), "normalize_kernels" (Miyato et al. 2018), or "clip" (Sedghi et al.
        2019).
      spectral_norm_steps: of "normalize" and "normalize_kernels": power steps in each
        update. They estimate the norm from below, and one lags behind fast updates:
        norms were 5 to 15 % above the bound with Adam.
      optimizer: one of ``OPTIMIZERS``.
      learning_rate: the largest one.
      schedule: "constant", "cosine" to zero, "step": times decay_factor after each of
        the milestones, or "linear" between the points of learning_rates.
      milestones: of "step": epochs with commas between, such as "60,120,160"; None for
        1/2 and 3/4 of the epochs.
      decay_factor: of "step".
      learning_rates: of "linear": "epoch:rate" with commas between, from epoch 0 to
        the last; an epoch given twice is a jump. They replace learning_rate.
      warmup_epochs: the learning rate rises linearly from 0 over the first epochs.
      momentum: of "sgd".
      nesterov: of "sgd".
      weight_decay: an L2 term, added to the gradient before momentum or
        normalisation.
      decayed: which parameters the weight decay is on: "all", or "kernels_and_scales",
        all but biases.
      clip_norm: largest global norm of the gradient, or None.
      epochs: passes over the training examples.
      batch_size: examples per update over all devices; an incomplete last batch is
        left out.
      accumulation_steps: parts that a batch is computed in, one after the other, for
        less memory. BatchNorm and the method see each part by itself.
      seed: of initialisation, order, augmentation and starts.
      init_from: run directory or checkpoint whose parameters and BatchNorm statistics
        to start from, or None.
    """

    dataset: str = "cifar10_mini"
    data_dir: str | None = None
    train_examples: int | None = None
    random_labels: float = 0.0
    augment: bool = True
    padding: str = "zero"
    cutout: int = 0
    image_size: int | None = None
    least_area: float = 0.08
    phases: str | None = None
    model: str = "cnn7"
    width: int | None = 16
    activation: str = "relu"
    logit_activation: bool = False
    normalization: str = "half"
    compute_dtype: str = "float32"
    rematerialize: bool = False
    method: str = "standard"
    p: float = 2.0
    q: float = 2.0
    epsilon: float = 0.5
    weight: float = 1.0
    mix: float = 0.5
    difference_step: float = 0.01
    divide_by_size: bool = False
    gamma: float = 2.0
    num_steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    attack_labels: str = "true"
    search: str = "amortized"
    variant: str = "difference"
    penalty_fraction: float = 0.5
    spectral_norm_bound: float | None = None
    spectral_norm_method: str = "normalize"
    spectral_norm_steps: int = 1
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    milestones: str | None = None
    decay_factor: float = 0.1
    learning_rates: str | None = None
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = "all"
    clip_norm: float | None = None
    epochs: int = 6
    batch_size: int = 64
    accumulation_steps: int = 1
    seed: int = 0
    init_from: str | None = None


def from_plain(values: Any, source: str) -> Config:
    """Builds the configuration that somebody else may have written as JSON.

    Args:
      values: fields by name; those that are not there get their defaults.
      source: what an error calls it.

    Raises:
      ValueError: naming fields that there are not, or values of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source} has no configuration of named fields.")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    unknown = sorted(str(name)[:40] for name in values if name not in fields)
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{source} has a configuration with fields that this version of opnorm "
            f"does not know: {shown}; use the version that wrote it, or a later one."
        )
    for name, value in values.items():
        allowed = _types(fields[name].type)
        if type(value) not in allowed:
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(
                f"{source} has a configuration whose {name} is of type "
                f"{type(value).__name__}; it must be {expected}."
            )
    return Config(**values)


def _types(annotation: Any) -> tuple[type, ...]:
    """The types of a field's values; whole numbers may stand for others."""
    parts = (annotation,)
    if isinstance(annotation, types.UnionType):
        parts = typing.get_args(annotation)
    return (*parts, int) if float in parts else parts
