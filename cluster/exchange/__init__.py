"""How workers combine their gradients: a seam, and one module for each way."""
