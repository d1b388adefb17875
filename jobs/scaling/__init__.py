"""Scaling experiments as jobs: what `jobs/scale.py`, `plan.py` and `scaling_figures.py` consist of."""
