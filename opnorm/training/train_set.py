"""The training set that a configuration names."""

from opnorm import data
from opnorm.training.config import Config


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
        )
    dataset = data.load(
        config.dataset,
        split="train",
        data_dir=config.data_dir,
        download=download,
        limit=config.train_examples,
        seed=0,
        image_size=config.image_size,
    )
    if not config.random_labels:
        return dataset
    return data.randomize_labels(dataset, config.random_labels, seed=0)
