"""How workers combine their gradients: an interface, and one module per method."""
