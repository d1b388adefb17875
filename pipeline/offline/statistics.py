"""Colour statistics of a training set, exact however it is divided.

Sums of uint8 pixels and of their products are integers, whose sum does not depend on their order. So any number of
workers and any order of shards give the same bits. The sums fit into their types: ImageNet's training set at 256x256
has 8.4e10 pixels, whose squares add up to less than 2**53.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from pipeline.format.color import PIXEL_SCALE, ColorBasis
from pipeline.offline.image_sum import ImageSum

_PAIRS = ((0, 1), (0, 2), (1, 2))  # pairs of channels


class PixelSums:
    """Sums over the pixels of several pictures; `+=` merges two.

    Attributes:
        num_pixels: Number of pixels.
        num_images: Number of pictures.
        totals_9: Sums of red, green, blue; of their squares; of red * green, red * blue, green * blue; int64 (9,).
        deviations: Standard deviations of red, green and blue within each picture, in grey levels.
    """

    def __init__(self) -> None:
        """Begin without any picture."""
        self.num_pixels, self.num_images = 0, 0
        self.totals_9 = np.zeros(9, dtype=np.int64)
        self.deviations: list[list[float]] = []
        self._image_sum = ImageSum()
        self._planes: list[np.ndarray] = []  # of the latest picture; their memory is reused

    def add_picture(self, pixels_HWC: np.ndarray) -> None:
        """Add one picture: uint8 (H, W, 3), contiguous."""
        if not self._planes or self._planes[0].shape != pixels_HWC.shape[:2]:
            self._planes = [np.empty(pixels_HWC.shape[:2], dtype=np.uint8) for _ in range(3)]
        planes = cv2.split(pixels_HWC, self._planes)
        n = planes[0].size
        sums = [_exact(cv2.norm(plane, cv2.NORM_L1)) for plane in planes]
        squares = [_exact(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]
        distances = [_exact(cv2.norm(planes[i], planes[j], cv2.NORM_L2SQR)) for i, j in _PAIRS]
        # 2ab = aa + bb - (a - b)(a - b)
        products = [(squares[i] + squares[j] - d) // 2 for (i, j), d in zip(_PAIRS, distances, strict=True)]
        self.totals_9 += [*sums, *squares, *products]
        self.deviations.append([math.sqrt(n * squares[i] - sums[i] * sums[i]) / n for i in range(3)])
        self._image_sum.add(pixels_HWC)
        self.num_pixels += n
        self.num_images += 1

    def __iadd__(self, other: "PixelSums") -> "PixelSums":
        """Merge the sums of other pictures."""
        self._image_sum += other._image_sum
        self.num_pixels += other.num_pixels
        self.num_images += other.num_images
        self.totals_9 += other.totals_9
        self.deviations.extend(other.deviations)
        return self

    def color_basis(self) -> ColorBasis:
        """Return mean, covariance and eigenbasis.

        The numerators of the covariance, num_pixels * products - sum * sum, are computed in integers of any size, so no
        digits are lost by cancellation.
        """
        n = self.num_pixels
        sums, squares, products = ([int(total) for total in self.totals_9[first : first + 3]] for first in (0, 3, 6))
        covariance_33 = np.empty((3, 3))
        for i, j, product in [
            *((i, i, squares[i]) for i in range(3)),
            *((*p, products[k]) for k, p in enumerate(_PAIRS)),
        ]:
            numerator = n * product - sums[i] * sums[j]
            covariance_33[i, j] = covariance_33[j, i] = numerator / (n * PIXEL_SCALE) ** 2
        mean_3 = np.array([s / (n * PIXEL_SCALE) for s in sums])
        return ColorBasis.from_covariance(mean_3, covariance_33, PIXEL_SCALE)

    def mean_image_HWC(self) -> np.ndarray | None:
        """Return the mean at each pixel, float32 grey levels, or None if the pictures differ in size."""
        image_sum_HWC = self._image_sum.total_HWC
        return None if image_sum_HWC is None else (image_sum_HWC / self.num_images).astype(np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays, for the record of a shard."""
        arrays = {
            "counts": np.array([self.num_pixels, self.num_images], dtype=np.int64),
            "totals_9": self.totals_9,
            "deviations_N3": np.array(self.deviations, dtype=np.float64).reshape(-1, 3),
        }
        image_sum_HWC = self._image_sum.total_HWC
        return arrays if image_sum_HWC is None else arrays | {"image_sum_HWC": image_sum_HWC}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "PixelSums":
        """Rebuild sums from the arrays of `to_arrays`."""
        sums = cls()
        sums.num_pixels, sums.num_images = arrays["counts"].tolist()
        sums.totals_9 = arrays["totals_9"]
        sums.deviations = arrays["deviations_N3"].tolist()
        if "image_sum_HWC" in arrays:
            sums._image_sum = ImageSum(arrays["image_sum_HWC"])
        elif sums.num_images:
            sums._image_sum = ImageSum.of_several_sizes()
        return sums


def _exact(norm: float) -> int:
    """Return a norm of bytes as the integer it stands for; NORM_L2SQR squares a root, so its last bit may be off."""
    return round(norm)


def color_document(sums: PixelSums, resize_rule: str, manifest_sha256: str) -> dict[str, Any]:
    """Return the content of `statistics/color.json`.

    Args:
        sums: Sums over the whole training split.
        resize_rule: Resizing of the pictures before their pixels were counted.
        manifest_sha256: SHA-256 of the training manifest that the statistics belong to.
    """
    basis = sums.color_basis()
    # An exact sum: the mean does not depend on the order of the pictures.
    per_image = [math.fsum(column) / (sums.num_images * PIXEL_SCALE) for column in zip(*sums.deviations, strict=True)]
    return {
        "pixel_scale": basis.pixel_scale,
        "num_images": sums.num_images,
        "num_pixels": sums.num_pixels,
        "mean": basis.mean_3.tolist(),
        "covariance": basis.covariance_33.tolist(),
        "std": basis.std_3.tolist(),
        "mean_of_per_image_std": per_image,
        "eigenvalues": basis.eigenvalues_3.tolist(),
        "eigenvectors": basis.eigenvectors_33.tolist(),
        "eigenvectors_layout": "column i belongs to eigenvalue i; its entry of largest magnitude is positive",
        "resize_rule": resize_rule,
        "manifest_sha256": manifest_sha256,
    }
