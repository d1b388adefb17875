"""Measurements of the project against floors and peers; each run leaves a dated record in `benchmarks/records`."""
