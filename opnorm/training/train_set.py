"""The training set and the validation set that a configuration names."""

from opnorm import data
from opnorm.training.config import Config
from opnorm.training.plan import image_size


def load_train_set(
    config: Config, *, download: bool = False
) -> data.Dataset | data.Stream:
    """Loads the training set of a configuration, or opens it where it is streamed.

    Raises:
      ValueError or FileNotFoundError: as :func:`opnorm.data.load`.
    """
    if data.is_streamed(config.dataset):
        return data.open_stream(
            config.dataset,
            split="train",
            data_dir=config.data_dir,
            limit=config.train_examples,
            validation_fraction=config.validation_fraction,
        )
    dataset = data.load(
        config.dataset,
        split="train",
        data_dir=config.data_dir,
        download=download,
        limit=config.train_examples,
        seed=0,
        image_size=config.image_size,
        validation_fraction=config.validation_fraction,
    )
    if not config.random_labels:
        return dataset
    return data.randomize_labels(dataset, config.random_labels, seed=0)


def load_validation_set(
    config: Config, *, download: bool = False, limit: int | None = None
) -> data.Dataset:
    """Loads the examples that a configuration holds out of its training.

    They are the same for all ``train_examples`` and seeds, and have their own labels
    where ``random_labels`` changes those of the training set.

    Args:
      config: a configuration with a validation_fraction above 0.
      download: whether the data set may be downloaded.
      limit: keep at most this many examples, the same ones each time, as many of each
        class as possible; None keeps all.

    Returns:
      The examples in memory. Streamed images are cropped at the centre, in the size
      that the trained network takes.

    Raises:
      ValueError or FileNotFoundError: as :func:`opnorm.data.load`; also without a
        validation_fraction.

    Example:
      >>> from opnorm import training
      >>> config = training.Config(validation_fraction=0.1, train_examples=500)
      >>> validation_set = training.load_validation_set(config, limit=100)
      >>> len(validation_set), len(training.load_train_set(config))
      (100, 500)
    """
    return data.load(
        config.dataset,
        split="validation",
        data_dir=config.data_dir,
        download=download,
        limit=limit,
        seed=0,
        image_size=image_size(config),
        validation_fraction=config.validation_fraction,
    )
