"""The dataset folder: names and contents of its files."""
