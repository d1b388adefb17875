"""Tensors: AlexNet variants, LRN, dropout, initialisation, optimisers, metrics."""
