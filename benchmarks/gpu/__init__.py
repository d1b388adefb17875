"""Independent checks of the whole project on a GPU: `python -m benchmarks.gpu`."""
