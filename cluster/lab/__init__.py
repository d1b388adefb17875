"""Clusters of this machine's own, and what is done to them."""
