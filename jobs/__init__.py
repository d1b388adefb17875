"""Commands to train, evaluate and predict, and the recipes."""
