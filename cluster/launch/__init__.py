"""Starting workers and keeping them alive: on Ray Train, under torchrun."""
