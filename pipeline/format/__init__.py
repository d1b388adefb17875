"""The dataset folder: what its files are called and hold."""
