"""Synthetic pictures, and the ImageNet archives made of them."""
