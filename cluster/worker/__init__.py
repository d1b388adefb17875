"""One worker: the training loop, evaluation and prediction."""
