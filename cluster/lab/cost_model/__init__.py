"""The cost model of a training step: what it is, how it is fitted and judged, and plans by it."""
