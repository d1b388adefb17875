"""Checks that a recipe, a dataset and a number of workers fit together, made before anything is started."""

from cluster.run.config import TrainingConfig
from model.registry import check_image_size, check_network
from pipeline.command import InputError
from pipeline.dataset import Dataset


def check_fits(config: TrainingConfig, dataset: Dataset, num_workers: int) -> None:
    """Check that recipe, dataset and workers fit together.

    Raises:
        InputError: They do not; the message names the cause.
    """
    _check_workers(config, num_workers)
    if config.optimizer.schedule == "plateau" and "val" not in dataset.splits:
        raise InputError(
            f"recipe {config.name} lowers its rate by the error on val, which {dataset.path} lacks; choose another "
            "schedule (--optimizer.schedule cosine), or make the dataset with --val-fraction 0.05"
        )
    if config.early_stop_patience is not None and "val" not in dataset.splits:
        raise InputError(
            f"--early-stop-patience needs the split val, which {dataset.path} lacks; leave it out, or make the dataset "
            "with --val-fraction 0.05"
        )
    check_images_fit(config, dataset)


def check_fits_pictures(config: TrainingConfig, what: str, stored_size: int, num_workers: int) -> None:
    """Check as far as possible before there is a dataset that recipe, pictures and workers fit together.

    Args:
        config: Recipe.
        what: Name of the pictures, for messages.
        stored_size: Height and width at which they will be stored.
        num_workers: Number of workers.

    Raises:
        InputError: They do not; the message names the cause.
    """
    _check_workers(config, num_workers)
    _check_network(config, what, stored_size)


def check_images_fit(config: TrainingConfig, dataset: Dataset) -> None:
    """Check that the model is there, and takes the dataset's pictures.

    Raises:
        InputError: It is not, or does not.
    """
    _check_network(config, str(dataset.path), dataset.stored_size)


def _check_workers(config: TrainingConfig, num_workers: int) -> None:
    group_size = config.model.group_size
    num_groups = config.global_batch_size // group_size
    if num_groups < num_workers:
        groups = f" in groups of {group_size}" if group_size > 1 else ""
        raise InputError(
            f"{num_workers} workers can't share a global batch of {config.global_batch_size}{groups}; use at most "
            f"{num_groups} workers"
        )


def _check_network(config: TrainingConfig, what: str, stored_size: int) -> None:
    try:
        check_network(config.model)
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        check_image_size(config.model, config.augmentation.crop_of(stored_size))
    except ValueError as error:
        raise InputError(f"recipe {config.name} does not fit {what}: {error}") from error
