"""A training job: what `jobs/train.py` consists of."""
