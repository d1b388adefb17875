"""Colour statistics of a training set, exact whatever the partition.

Sums of uint8 pixels and of their products are integers; integers add in any order to the same value, so any number of
workers and any order of shards give the same bits. They fit: ImageNet's training set at 256x256 has 8.4e10 pixels,
whose squares add up to less than 2**53.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.color import PIXEL_SCALE, ColorBasis


@dataclass
class PixelSums:
    """Sums over the pixels of some pictures; `+=` merges two.

    Attributes:
        num_pixels: Pixels seen.
        sum_3: int64 (3,), of red, green, blue.
        products_33: int64 (3, 3), of all products of two channels.
        image_sum_HWC: uint64, of the pictures themselves, or None before the first and as soon as their sizes differ.
        num_images: Pictures seen.
        deviations: Each picture's own standard deviations, a list of (3,) float64, in grey levels.
    """

    num_pixels: int = 0
    sum_3: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    products_33: np.ndarray = field(default_factory=lambda: np.zeros((3, 3), dtype=np.int64))
    image_sum_HWC: np.ndarray | None = None
    num_images: int = 0
    deviations: list[np.ndarray] = field(default_factory=list)

    def add_picture(self, pixels_HWC: np.ndarray) -> None:
        """Add one picture: uint8 (H, W, 3)."""
        # Products of bytes, summed over at most 2**37 pixels, are exact in float64, where the product of matrices is
        # fast.
        pixels_P3 = pixels_HWC.reshape(-1, 3).astype(np.float64)
        products_33 = pixels_P3.T @ pixels_P3
        sum_3 = pixels_P3.sum(axis=0)
        num_pixels = len(pixels_P3)
        variance_3 = np.diag(products_33) / num_pixels - (sum_3 / num_pixels) ** 2
        self._merge_images(1, pixels_HWC.astype(np.uint64))
        self.num_pixels += num_pixels
        self.sum_3 = self.sum_3 + sum_3.astype(np.int64)
        self.products_33 = self.products_33 + products_33.astype(np.int64)
        self.deviations.append(np.sqrt(np.maximum(variance_3, 0.0)))

    def __iadd__(self, other: "PixelSums") -> "PixelSums":
        """Merge another partition's sums."""
        if other.num_images:
            self._merge_images(other.num_images, other.image_sum_HWC)
        self.num_pixels += other.num_pixels
        self.sum_3 = self.sum_3 + other.sum_3
        self.products_33 = self.products_33 + other.products_33
        self.deviations.extend(other.deviations)
        return self

    def _merge_images(self, num_images: int, image_sum_HWC: np.ndarray | None) -> None:
        if self.num_images == 0:
            self.image_sum_HWC = image_sum_HWC
        elif image_sum_HWC is None or self.image_sum_HWC is None or image_sum_HWC.shape != self.image_sum_HWC.shape:
            self.image_sum_HWC = None
        else:
            self.image_sum_HWC = self.image_sum_HWC + image_sum_HWC
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
            "deviations_N3": np.array(self.deviations).reshape(-1, 3),
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
            deviations=list(arrays["deviations_N3"]),
        )


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
