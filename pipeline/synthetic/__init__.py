"""Synthetic pictures, and the ImageNet archives that are made of them."""
