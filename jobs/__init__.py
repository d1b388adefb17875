"""What we run: train, evaluate, and the recipes."""
