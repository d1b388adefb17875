"""Draw the stream of positions, the samples they stand for in two epochs, and the steps that read them.

Run `python docs/figures/order_positions.py docs/figures/order_positions.png` in the checkout.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from pipeline.online.order import SampleOrder

NUM_SAMPLES, GLOBAL_BATCH_SIZE, NUM_POSITIONS = 20, 12, 40
INK, QUIET, MARK = "#22303c", "#7d8a96", "#2f6db5"
EPOCHS = ("#fdf1dc", "#e3eefa")


def main(out: Path) -> None:
    """Write the figure."""
    ids = SampleOrder(NUM_SAMPLES, seed=0).sample_ids(np.arange(NUM_POSITIONS))
    figure, axes = plt.subplots(figsize=(13, 2.6), dpi=130)
    for epoch in range(NUM_POSITIONS // NUM_SAMPLES):
        left = epoch * NUM_SAMPLES
        axes.add_patch(Rectangle((left, -2.2), NUM_SAMPLES, 3.4, color=EPOCHS[epoch], zorder=0))
        name = f"epoch {epoch}: permutation(seed, {epoch})"
        axes.text(left + NUM_SAMPLES / 2, 1.35, name, ha="center", va="bottom", color=INK, fontsize=10)
    colors = plt.get_cmap("YlGnBu")(np.linspace(0.08, 0.62, NUM_SAMPLES))
    for position, sample in enumerate(ids):
        middle = position + 0.5
        axes.text(middle, 0.65, position, ha="center", va="center", color=QUIET, fontsize=7)
        axes.add_patch(Rectangle((position, -0.75), 1, 1, facecolor=colors[sample], edgecolor="white", lw=1))
        axes.text(middle, -0.25, sample, ha="center", va="center", color=INK, fontsize=7.5)
    for step in range(-(-NUM_POSITIONS // GLOBAL_BATCH_SIZE)):
        _draw_step(axes, step)
    for height, label in ((0.65, "position"), (-0.25, "sample"), (-1.35, "step")):
        axes.text(-0.5, height, label, ha="right", va="center", color=INK, fontsize=10)
    axes.set_xlim(-4, NUM_POSITIONS + 0.5)
    axes.set_ylim(-2.3, 2.2)
    axes.set_axis_off()
    figure.savefig(out, bbox_inches="tight", facecolor="white")


def _draw_step(axes: Axes, step: int) -> None:
    """Draw the positions of a step; the last one goes on beyond the figure."""
    begin, end = step * GLOBAL_BATCH_SIZE, (step + 1) * GLOBAL_BATCH_SIZE
    shown = min(end, NUM_POSITIONS)
    shape = (begin + 0.12, -1.55), shown - begin - (0.24 if end == shown else 0), 0.4
    axes.add_patch(FancyBboxPatch(*shape, boxstyle="round,pad=0,rounding_size=0.15", color=MARK, zorder=2))
    text = f"step {step}" + (" ..." if shown < end else "")
    axes.text((begin + shown) / 2, -1.85, text, ha="center", va="center", color=INK, fontsize=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
