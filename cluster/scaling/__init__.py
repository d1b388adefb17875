"""Scaling experiments: the same training step on many numbers of workers, batches, exchanges and links, measured."""
