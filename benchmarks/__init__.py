"""Measurements of the project against floors and peers; each run writes a dated record to `benchmarks/records`."""
