"""A run on disk: its recipe, folder, logs, checkpoints and ledger."""
