"""The disk and memory that a run will take, from its recipe alone."""

from pathlib import Path

from cluster.exchange.cost import Workload
from cluster.exchange.names import StrategyChoice
from cluster.launch.node_checks import Requirements
from cluster.run.config import TrainingConfig
from model.registry import outline_network
from pipeline.dataset import Dataset

# Of all gradients: in the model's order, as they were before the approximation, and what it leaves out, new and old.
_POWERSGD_COPIES = 4


def training_requirements(
    config: TrainingConfig,
    dataset: Dataset,
    run_path: Path,
    exchange: StrategyChoice = "auto",
    workers: tuple[int, int] = (1, 1),
) -> Requirements:
    """Return what a run needs of every node.

    On disk: the checkpoints that are kept, the best, and one that is being written; less what a run that goes on has
    there already. In memory: see `num_worker_bytes`.

    Args:
        config: The recipe.
        dataset: Dataset to train on.
        run_path: Run folder, absolute.
        exchange: Exchange of gradients that the command names.
        workers: Least and greatest number of workers.
    """
    least, most = workers
    checkpoint = num_checkpoint_bytes(config, dataset.num_classes, most)
    written = sum(path.stat().st_size for path in (run_path / "checkpoints").glob("*.pt"))
    return Requirements(
        dataset_path=dataset.path,
        dataset_sha256=dataset.sha256,
        folder=run_path,
        num_bytes=max(checkpoint, (config.num_checkpoints + 2) * checkpoint - written),
        worker_bytes=num_worker_bytes(config, dataset.num_classes, exchange, least),
        replaces_bad_samples=config.on_bad_sample == "skip-and-count",
        may_be_bfloat16=config.may_be_bfloat16,
        num_shards=dataset.num_shards,
    )


def num_worker_bytes(config: TrainingConfig, num_classes: int, exchange: StrategyChoice, num_workers: int) -> int:
    """Return the memory of the first worker, which takes most; activations and libraries come on top.

    It keeps weights, gradient and the optimiser's state, and a checkpoint that is being written. By `hybrid` it keeps
    only a part of the dense layers' weights, gradients and state; but checkpoints are whole, and at the start the whole
    network stands beside the checkpoint to restore. What all workers keep for a lossy exchange it gathers, and copies
    into the checkpoint.
    """
    weights, checkpoint = num_weight_bytes(config, num_classes), num_checkpoint_bytes(config, num_classes)
    kept = weights + checkpoint
    workload = Workload.of(outline_network(config.model, num_classes=num_classes), config.global_batch_size)
    if exchange == "hybrid" and exchange in workload.choices(num_workers):
        num_kept = workload.num_other + workload.num_dense // num_workers
        kept = max(weights, kept * num_kept // (workload.num_other + workload.num_dense))
    if config.gradient_compression == "powersgd" and num_workers > 1:
        kept += _POWERSGD_COPIES * weights
    gathered = num_checkpoint_bytes(config, num_classes, num_workers) - checkpoint
    return kept + checkpoint + 2 * gathered


def num_weight_bytes(config: TrainingConfig, num_classes: int) -> int:
    """Return the size of a model's parameters and buffers."""
    model = outline_network(config.model, num_classes=num_classes)  # takes no memory
    num_values = sum(tensor.numel() for tensor in model.state_dict().values())
    return num_values * (8 if config.precision == "float64" else 4)


def num_checkpoint_bytes(config: TrainingConfig, num_classes: int, num_workers: int = 1) -> int:
    """Return the size of a checkpoint, but for some kilobytes.

    It has weights and the optimiser's state; and of each worker what PowerSGD has left out so far, or, by local SGD,
    the optimiser's state of the others.
    """
    weights = num_weight_bytes(config, num_classes)
    state = weights * (2 if config.optimizer.name == "adam" else 1)
    of_workers = 0
    if num_workers > 1 and config.gradient_compression == "powersgd":
        of_workers = num_workers * weights
    if num_workers > 1 and config.local_sgd_steps is not None:
        of_workers = (num_workers - 1) * state
    return weights + state + of_workers
