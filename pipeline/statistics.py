"""Colour statistics of a training set, exact whatever the partition.

Sums of uint8 pixels and of their products are integers; integers add in any order to the same value, so any number of
workers and any order of shards give the same bits. They fit: ImageNet's training set at 256x256 has 8.4e10 pixels,
whose squares add up to less than 2**53.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from pipeline.color import PIXEL_SCALE, ColorBasis


@dataclass
class PixelSums:
    """Sums over the pixels of some pictures; `+=` merges two.

    Attributes:
        num_pixels: Pixels seen.
        sum_3: int64 (3,), of red, green, blue.
        products_33: int64 (3, 3), of all products of two channels.
        image_sum_HWC: Of the pictures themselves, or None before the first and as soon as their sizes differ; float64,
            integers below 2**53.
        num_images: Pictures seen.
        deviations: Each picture's own standard deviations of red, green, blue, in grey levels.
    """

    num_pixels: int = 0
    sum_3: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    products_33: np.ndarray = field(default_factory=lambda: np.zeros((3, 3), dtype=np.int64))
    image_sum_HWC: np.ndarray | None = None
    num_images: int = 0
    deviations: list[list[float]] = field(default_factory=list)

    def add_picture(self, pixels_HWC: np.ndarray) -> None:
        """Add one picture: uint8 (H, W, 3), contiguous."""
        planes = cv2.split(pixels_HWC)
        num_pixels = planes[0].size
        sums = [_exact(cv2.norm(plane, cv2.NORM_L1)) for plane in planes]
        squares = [_exact(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]
        products_33 = np.diag(squares)
        for i, j in ((0, 1), (0, 2), (1, 2)):  # 2ab = aa + bb - (a - b)(a - b)
            distance = _exact(cv2.norm(planes[i], planes[j], cv2.NORM_L2SQR))
            products_33[i, j] = products_33[j, i] = (squares[i] + squares[j] - distance) // 2
        self._add_images(1, pixels_HWC)
        self.num_pixels += num_pixels
        self.sum_3 += sums
        self.products_33 += products_33
        variances = [num_pixels * square - total * total for square, total in zip(squares, sums, strict=True)]
        self.deviations.append([math.sqrt(variance) / num_pixels for variance in variances])

    def __iadd__(self, other: "PixelSums") -> "PixelSums":
        """Merge another partition's sums."""
        if other.num_images:
            self._add_images(other.num_images, other.image_sum_HWC)
        self.num_pixels += other.num_pixels
        self.sum_3 += other.sum_3
        self.products_33 += other.products_33
        self.deviations.extend(other.deviations)
        return self

    def _add_images(self, num_images: int, image_HWC: np.ndarray | None) -> None:
        """Add a picture, or the sum of some."""
        if image_HWC is not None and self.num_images == 0:
            self.image_sum_HWC = image_HWC.astype(np.float64)
        elif image_HWC is None or self.image_sum_HWC is None or image_HWC.shape != self.image_sum_HWC.shape:
            self.image_sum_HWC = None
        else:
            cv2.accumulate(image_HWC, self.image_sum_HWC)
        self.num_images += num_images

    def color_basis(self) -> ColorBasis:
        """Return mean, covariance and eigenbasis.

        The covariance's numerators num_pixels * products - sum * sum are formed in integers of any size, so nothing
        cancels.
        """
        n = self.num_pixels
        sums = [int(s) for s in self.sum_3]
        covariance_33 = np.array(
            [
                [(n * int(self.products_33[i, j]) - sums[i] * sums[j]) / (n * PIXEL_SCALE) ** 2 for j in range(3)]
                for i in range(3)
            ]
        )
        mean_3 = np.array([s / (n * PIXEL_SCALE) for s in sums])
        return ColorBasis.from_covariance(mean_3, covariance_33, PIXEL_SCALE)

    def mean_image_HWC(self) -> np.ndarray | None:
        """Return the mean activity at each pixel, float32 grey levels, or None if the pictures' sizes differ."""
        if self.image_sum_HWC is None:
            return None
        return (self.image_sum_HWC / self.num_images).astype(np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays, for a shard's record."""
        arrays = {
            "counts": np.array([self.num_pixels, self.num_images], dtype=np.int64),
            "sum_3": self.sum_3,
            "products_33": self.products_33,
            "deviations_N3": np.array(self.deviations, dtype=np.float64).reshape(-1, 3),
        }
        if self.image_sum_HWC is not None:
            arrays["image_sum_HWC"] = self.image_sum_HWC
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "PixelSums":
        """Rebuild sums from `to_arrays`."""
        return cls(
            num_pixels=int(arrays["counts"][0]),
            sum_3=arrays["sum_3"],
            products_33=arrays["products_33"],
            image_sum_HWC=arrays.get("image_sum_HWC"),
            num_images=int(arrays["counts"][1]),
            deviations=arrays["deviations_N3"].tolist(),
        )


def _exact(norm: float) -> int:
    """Return a norm of bytes as the integer it is; of NORM_L2SQR the last bit may be off: a root, squared again."""
    return round(norm)


def color_document(sums: PixelSums, resize_rule: str, manifest_sha256: str) -> dict[str, Any]:
    """Return the content of `statistics/color.json`.

    Args:
        sums: Over the whole training split.
        resize_rule: What was done to the pictures before their pixels were counted.
        manifest_sha256: Of the training manifest that the statistics belong to.
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
