"""The sum of pictures at each pixel, exact however they are divided among workers."""

import cv2
import numpy as np

_FLOAT32_IMAGES = 2**24 // 255  # a sum of this many bytes is exact in float32


class ImageSum:
    """Sum of pictures of one size; there is none for pictures of several sizes.

    The latest pictures are added up in float32, which is fast, and moved into a float64 sum before float32 would round.
    """

    def __init__(self, total_HWC: np.ndarray | None = None) -> None:
        """Begin with the float64 sum of several pictures, or without any picture."""
        self._folded_HWC = total_HWC
        self._latest_HWC: np.ndarray | None = None
        self._num_latest, self._sizes_differ = 0, False

    @classmethod
    def of_several_sizes(cls) -> "ImageSum":
        """Return the sum of pictures of several sizes, which has no total."""
        nothing = cls()
        nothing._give_up()
        return nothing

    def add(self, pixels_HWC: np.ndarray) -> None:
        """Add one picture: uint8 (H, W, 3)."""
        if self._sizes_differ:
            return
        if self._folded_HWC is None:
            self._folded_HWC = np.zeros(pixels_HWC.shape)
        if self._folded_HWC.shape != pixels_HWC.shape:
            self._give_up()
            return
        if self._latest_HWC is None:
            self._latest_HWC = np.zeros(pixels_HWC.shape, dtype=np.float32)
        cv2.accumulate(pixels_HWC, self._latest_HWC)
        self._num_latest += 1
        if self._num_latest == _FLOAT32_IMAGES:
            self._hold(self.total_HWC)

    def __iadd__(self, other: "ImageSum") -> "ImageSum":
        """Add another sum."""
        mine_HWC, theirs_HWC = self.total_HWC, other.total_HWC
        if self._sizes_differ or other._sizes_differ:
            self._give_up()
        elif mine_HWC is None or theirs_HWC is None:
            self._hold(theirs_HWC if mine_HWC is None else mine_HWC)
        elif mine_HWC.shape != theirs_HWC.shape:
            self._give_up()
        else:
            self._hold(mine_HWC + theirs_HWC)
        return self

    @property
    def total_HWC(self) -> np.ndarray | None:
        """The float64 sum; None if there is no picture or the sizes differ."""
        if self._folded_HWC is None or self._latest_HWC is None:
            return self._folded_HWC
        return self._folded_HWC + self._latest_HWC

    def _hold(self, total_HWC: np.ndarray | None) -> None:
        self._folded_HWC, self._latest_HWC, self._num_latest = total_HWC, None, 0

    def _give_up(self) -> None:
        self._hold(None)
        self._sizes_differ = True
