"""Ranks and time: the worker loop, checkpoints, metrics, the launch on Ray Train."""
