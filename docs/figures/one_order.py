"""Draw which worker reads which sample, from the project's own order: the same samples in each step, on any cluster.

Run `python docs/figures/one_order.py docs/figures/one_order.png` in the checkout.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from pipeline.online.order import RankShare, SampleOrder

NUM_SAMPLES, GLOBAL_BATCH_SIZE, NUM_STEPS = 20, 12, 5
INK, QUIET = "#22303c", "#7d8a96"
RANKS = ("#2f6db5", "#d9822b", "#3a8f5c", "#8e5bb0")
# Rows of the picture: what the run is on, and the number of workers in each step.
ROWS = (
    ("a laptop", (1, 1, 1, 1, 1)),
    ("four GPUs", (4, 4, 4, 4, 4)),
    ("a cluster that\nlost a node, then\ngained two", (3, 3, 2, 2, 4)),
)
LOST_IN_STEP = 2


def main(out: Path) -> None:
    """Write the figure."""
    order = SampleOrder(NUM_SAMPLES, seed=0)
    positions = np.arange(NUM_STEPS * GLOBAL_BATCH_SIZE)
    ids = order.sample_ids(positions).reshape(NUM_STEPS, GLOBAL_BATCH_SIZE)
    colors = plt.get_cmap("YlGnBu")(np.linspace(0.08, 0.62, NUM_SAMPLES))
    figure, axes = plt.subplots(figsize=(13, 4), dpi=130)
    step_width = GLOBAL_BATCH_SIZE + 1.6
    for step in range(NUM_STEPS):
        middle = step * step_width + GLOBAL_BATCH_SIZE / 2
        axes.text(middle, 0.35, f"step {step}", ha="center", va="bottom", color=INK, fontsize=10)
    for row, (label, num_workers) in enumerate(ROWS):
        top = -row * 2.75
        axes.text(-1.0, top - 0.9, label, ha="right", va="center", color=INK, fontsize=10)
        for step in range(NUM_STEPS):
            left = step * step_width
            for place, sample in enumerate(ids[step]):
                box = Rectangle((left + place, top - 1.0), 1, 1, facecolor=colors[sample], edgecolor="white", lw=1)
                axes.add_patch(box)
                axes.text(left + place + 0.5, top - 0.5, sample, ha="center", va="center", color=INK, fontsize=6)
            for rank in range(num_workers[step]):
                begin, end = RankShare(GLOBAL_BATCH_SIZE, rank, num_workers[step]).range_from(0)
                shape = (left + begin + 0.08, top - 1.55), end - begin - 0.16, 0.36
                axes.add_patch(FancyBboxPatch(*shape, boxstyle="round,pad=0,rounding_size=0.15", color=RANKS[rank]))
        if row == 2:
            middle = LOST_IN_STEP * step_width - 0.8
            axes.plot([middle] * 2, [top + 0.15, top - 1.7], color="#c0392b", lw=1.5, ls=(0, (3, 2)))
            axes.text(middle, top - 1.85, "node lost", ha="center", va="top", color="#c0392b", fontsize=8)
    bottom = -2 * 2.75 - 3.1
    for rank, color in enumerate(RANKS):
        left = NUM_STEPS * step_width - 1.6 - (4 - rank) * 7.2
        shape = (left, bottom), 1.6, 0.36
        axes.add_patch(FancyBboxPatch(*shape, boxstyle="round,pad=0,rounding_size=0.15", color=color))
        axes.text(left + 2.1, bottom + 0.18, f"worker {rank}", va="center", color=QUIET, fontsize=8)
    caption = f"{NUM_SAMPLES} samples, global batch of {GLOBAL_BATCH_SIZE}: every number is a sample's id"
    axes.text(0, bottom + 0.18, caption, va="center", color=QUIET, fontsize=8)
    axes.set_xlim(-11, NUM_STEPS * step_width)
    axes.set_ylim(bottom - 0.4, 1.3)
    axes.set_axis_off()
    figure.savefig(out, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
