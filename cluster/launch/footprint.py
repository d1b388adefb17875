"""The disk and memory that a run will take, from its recipe alone."""

from pathlib import Path

from cluster.exchange.cost import Workload
from cluster.exchange.names import StrategyChoice
from cluster.launch.node_checks import Requirements
from cluster.run.config import TrainingConfig
from model.registry import outline_network
from pipeline.dataset import Dataset


def training_requirements(
    config: TrainingConfig,
    dataset: Dataset,
    run_path: Path,
    exchange: StrategyChoice = "auto",
    num_workers: int = 1,
) -> Requirements:
    """Return what a run needs of every node.

    On disk: the checkpoints that are kept, the best, and one that is being written; less what a run that goes on has
    there already. In memory: see `num_worker_bytes`.

    Args:
        config: The recipe.
        dataset: Dataset to train on.
        run_path: Run folder, absolute.
        exchange: Exchange of gradients that the command names.
        num_workers: Least number of workers.
    """
    checkpoint = num_checkpoint_bytes(config, dataset.num_classes)
    written = sum(path.stat().st_size for path in (run_path / "checkpoints").glob("*.pt"))
    return Requirements(
        dataset_path=dataset.path,
        dataset_sha256=dataset.sha256,
        folder=run_path,
        num_bytes=max(checkpoint, (config.num_checkpoints + 2) * checkpoint - written),
        worker_bytes=num_worker_bytes(config, dataset.num_classes, exchange, num_workers),
        replaces_bad_samples=config.on_bad_sample == "skip-and-count",
        may_be_bfloat16=config.may_be_bfloat16,
        num_shards=dataset.num_shards,
    )


def num_worker_bytes(config: TrainingConfig, num_classes: int, exchange: StrategyChoice, num_workers: int) -> int:
    """Return the memory of the first worker, which takes most; activations and libraries come on top.

    It keeps weights, gradient and the optimiser's state, and a checkpoint that is being written. By `hybrid` it keeps
    only a part of the dense layers' weights, gradients and state; but checkpoints are whole, and at the start the whole
    network stands beside the checkpoint to restore.
    """
    weights, checkpoint = num_weight_bytes(config, num_classes), num_checkpoint_bytes(config, num_classes)
    kept = weights + checkpoint
    workload = Workload.of(outline_network(config.model, num_classes=num_classes), config.global_batch_size)
    if exchange == "hybrid" and exchange in workload.choices(num_workers):
        num_kept = workload.num_other + workload.num_dense // num_workers
        kept = max(weights, kept * num_kept // (workload.num_other + workload.num_dense))
    return kept + checkpoint


def num_weight_bytes(config: TrainingConfig, num_classes: int) -> int:
    """Return the size of a model's parameters and buffers."""
    model = outline_network(config.model, num_classes=num_classes)  # takes no memory
    num_values = sum(tensor.numel() for tensor in model.state_dict().values())
    return num_values * (8 if config.precision == "float64" else 4)


def num_checkpoint_bytes(config: TrainingConfig, num_classes: int) -> int:
    """Return the size of a checkpoint, but for some kilobytes: weights and the optimiser's state."""
    num_buffers = 2 if config.optimizer.name == "adam" else 1  # of the weights' size, each
    return num_weight_bytes(config, num_classes) * (1 + num_buffers)
