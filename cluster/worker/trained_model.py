"""The model of a run, untrained and trained."""

import torch
from torch import nn

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.precision import place
from model.registry import build_network
from pipeline.command import InputError


def untrained_model(config: TrainingConfig, num_classes: int) -> nn.Module:
    """Build a recipe's network with its initial weights, the same on every worker.

    Raises:
        InputError: It can't be built here; the message says why.
    """
    try:
        return build_network(config.model, num_classes=num_classes, seed=config.seed)
    except ValueError as error:
        raise InputError(str(error)) from error


def load_model(run: RunFolder, device: torch.device) -> tuple[nn.Module, int]:
    """Return a run's model in evaluation mode, and its step.

    It is the best model on `val`, or the last one if there was no `val`.

    Raises:
        InputError: The run has no complete checkpoint.
    """
    state = run.checkpoints.load_best() or run.checkpoints.load_latest()
    if state is None and not run.checkpoints.is_empty():
        raise InputError(f"no checkpoint of {run.path} is intact; restore its folder `checkpoints` from a copy")
    if state is None:
        raise InputError(f"{run.path} has no checkpoint yet; train it first: jobs/train.py")
    config = run.config
    network = untrained_model(config, len(run.wnids))
    model = place(network, config.precision, device)  # before the weights: float32 would round those of a float64 run
    model.load_state_dict(state["model"])
    return model.eval(), state["step"]


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
