"""The choices that decide the result of a training run, in one place."""

import dataclasses
import typing

OPTIMIZERS = ("adam", "sgd", "rmsprop")
SCHEDULES = ("constant", "cosine", "step", "linear")
COMPUTE_DTYPES = ("float32", "bfloat16")
DECAYED = ("all", "kernels_and_scales")
EPSILON_UNITS = ("pixels", "standardized")
# Fields that decide the training set.
DATA_FIELDS = (
    "dataset",
    "data_dir",
    "validation_fraction",
    "train_examples",
    "random_labels",
    "image_size",
)
SPECTRAL_NORM_METHODS = {
    "normalize": "every kernel divided by the factor by which its layer's norm exceeds "
    "the bound, as a part of the network",
    "normalize_kernels": "the same with the norm of the kernel matrix",
    "clip": "singular values of every layer clipped after each epoch",
    "clip_once": "the same with a single clip, as published; norms exceed the bound",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The choices of a training run. Lengths are in [0, 1] pixel units by default::

        >>> from opnorm import training
        >>> config = training.Config(method="adversarial", epsilon=0.25)
        >>> config.model, config.p, config.weight
        ('cnn7', 2.0, 1.0)

    Attributes:
      dataset: a name that :func:`opnorm.data.load` knows.
      data_dir: where TensorFlow Datasets keeps its data, or None.
      validation_fraction: part of the train split, in [0, 1), that is held out of the
        training as the split "validation": chosen by a hash of the pixels of each
        image, or of its name where images are streamed; see
        :func:`opnorm.data.split_validation`.
      train_examples: how many training examples to use, or None for all that are not
        held out.
      random_labels: part of the training examples, in [0, 1], whose labels are drawn at
        random, once and the same ones for every seed; only for data in memory.
      augment: random crop after padding by 4, and horizontal flip. Streamed images are
        cropped and resized at random, and flipped; if false, cropped at the centre.
      padding: content of the border that the crop adds: "zero", "reflect" or "grey".
      cutout: side of the square of each image that is painted over, 0 for none.
      image_size: height and width of streamed images, None for 224. Images in memory
        are cropped at the centre to it, None for no crop.
      least_area: least part of a streamed image that a random crop takes, in (0, 1].
      phases: sizes of streamed data that change during the training, as "first
        epoch:image size:batch size:least area" with commas between, such as
        "0:128:512:0.08,15:224:192:0.087"; they replace image_size, batch_size and
        least_area.
      model: a name that :func:`opnorm.models.create` knows.
      width: the model's width, or None for its own default.
      depth: depth of the model "fixup", 6 n + 2, or None for 56.
      activation: "relu", "smooth_relu", "elu" or "swish".
      logit_activation: whether "resnext34" has the activation on the logits too, as
        published.
      scalar_biases: whether a Fixup network has a scalar bias before every convolution,
        activation and the last layer, as published by its authors.
      scalar_multipliers: whether every block of a Fixup network has a scalar factor,
        likewise.
      dropout: part of the entries that an AlexNet drops after each block of a
        convolution while it trains, in [0, 1).
      normalization: the network's normalisation of pixels, a name in
        :data:`opnorm.models.STATISTICS`; "whitened" is that of each image by itself.
      compute_dtype: dtype of the network's computation; parameters, BatchNorm
        statistics, logits and losses are float32 in any case.
      rematerialize: compute activations again in the backward pass, for less memory.
      method: a key of :data:`opnorm.training.METHODS`.
      p: exponent of the norm of perturbations, in [1, inf].
      q: exponent of the norm of logits for "data_dependent_onr", in [1, inf].
      epsilon: length of the perturbations of attack and penalty, in epsilon_unit.
      epsilon_unit: unit of epsilon and step_size: "pixels", of [0, 1], or
        "standardized": of images that the normalisation divides by its standard
        deviations; :func:`opnorm.training.in_pixels` converts. Other lengths are in
        pixels.
      weight: lambda, the factor of the method's term. Its conventions are those of
        Roth et al. 2020 (Eqs. 5, 7, 13, 14): squared penalties carry a 1/2, and the
        adversarial term is added to the clean one.
      mix: part of the penalty in the term of "interpolated", in [0, 1]: 0 is
        "adversarial", 1 "data_dependent_snr".
      difference_step: h, the L2 length of the finite difference of
        "gradient_regularization", in [0, 1] pixel units.
      divide_by_size: whether "gradient_regularization" divides the squared norm by the
        number of pixels, which Finlay & Oberman use against Linf.
      gamma: price of the squared L2 length of a perturbation of "wrm", in units of the
        cross-entropy per squared pixel unit.
      num_steps: steps of the attack, of the search with search="iterative" (power
        steps; for "dense" with exponents other than 2 steps on the dense Jacobian),
        or of "global_snr" in each update.
      step_size: step of the attack, in epsilon_unit; None for 2 epsilon / num_steps.
      random_start: whether the attack starts at a random point of the ball.
      attack_labels: the labels that the attack leads away from: "true", or "predicted"
        by the network at the clean image.
      search: how the direction of the penalty is found: "iterative" by power steps
        from a random start, "dense" from the whole Jacobian of the logits, "amortized"
        from a vector of each example that is kept between epochs.
      variant: "derivative" penalises epsilon ||J v||, "difference"
        ||f(x + epsilon v) - f(x)||.
      penalty_fraction: part of each batch that the "difference" penalty is taken on, in
        (0, 1]; its mean over that part is an unbiased estimate at a lower cost.
      spectral_norm_bound: largest spectral norm of a layer, "beta" of Farnia et al.
        2019, with any method; infinity bounds nothing at the same cost, None is
        without.
      spectral_norm_method: how the bound is kept: "normalize" (Farnia et
        al. 2019), "normalize_kernels" (Miyato et al. 2018), "clip" (Sedghi et al. 2019,
        repeated until the bound holds), or "clip_once" (the published single clip).
      spectral_norm_steps: power steps in each update, for "normalize" and
        "normalize_kernels". They estimate the norm from below, and one lags behind fast
        updates: norms were 5 to 15 % above the bound with Adam.
      optimizer: the rule of the updates, "adam", "sgd" or "rmsprop".
      learning_rate: the largest one.
      schedule: "constant", "cosine" to zero, "step": times decay_factor after each of
        the milestones, or "linear" between the points of learning_rates.
      milestones: epochs of schedule "step" with commas between, such as "60,120,160";
        None for 1/2 and 3/4 of the epochs.
      decay_factor: factor of the learning rate at each milestone of schedule "step".
      learning_rates: points of schedule "linear": "epoch:rate" with commas between,
        from epoch 0 to the last; an epoch given twice is a jump. They replace
        learning_rate.
      warmup_epochs: the learning rate rises linearly from 0 over the first epochs.
      momentum: momentum of optimizer "sgd".
      nesterov: whether the momentum of "sgd" is Nesterov's.
      weight_decay: an L2 term, added to the gradient before momentum or
        normalisation.
      decayed: the parameters with weight decay: "all", or "kernels_and_scales", all but
        biases.
      clip_norm: largest global norm of the gradient, or None.
      epochs: passes over the training examples.
      batch_size: examples per update over all devices; an incomplete last batch is
        left out.
      accumulation_steps: parts that a batch is computed in, one after the other, for
        less memory. BatchNorm and the method see each part by itself.
      seed: random seed of initialisation, order, augmentation and starts.
      init_from: run directory or checkpoint whose parameters and BatchNorm statistics
        to start from, or None.
    """

    dataset: str = "cifar10_mini"
    data_dir: str | None = None
    validation_fraction: float = 0.0
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
    depth: int | None = None
    activation: str = "relu"
    logit_activation: bool = False
    scalar_biases: bool = False
    scalar_multipliers: bool = False
    dropout: float = 0.0
    normalization: str = "half"
    compute_dtype: str = "float32"
    rematerialize: bool = False
    method: str = "standard"
    p: float = 2.0
    q: float = 2.0
    epsilon: float = 0.5
    epsilon_unit: str = "pixels"
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


def from_plain(values: object, source: str) -> Config:
    """Builds the configuration that somebody else may have written as JSON.

    Args:
      values: fields by name; missing ones get their defaults.
      source: the name of the file or directory in an error.

    Raises:
      ValueError: naming unknown fields, or values of another type.
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


def _types(annotation: object) -> tuple[type, ...]:
    """The types of a field's values; an integer may stand for a float."""
    parts: tuple[type, ...] = typing.get_args(annotation)
    if isinstance(annotation, type):
        parts = (annotation,)
    return (*parts, int) if float in parts else parts
