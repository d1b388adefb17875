"""Colour statistics of a training set: mean, covariance, its eigenbasis, and colour noise along the eigenvectors.

All values are in units of `pixel_scale`: with 255, a mean of 0.48 is a grey level of 122.4, and an eigenvalue is
a variance of pixels in [0, 1]. The paper adds `[p1 p2 p3][a1*l1, a2*l2, a3*l3]` to each pixel (Krizhevsky et al. 2012,
section 4.1). This formula is not scale-free, so each meaning of `l` has a name:

    fb             the eigenvalue, pixels in [0, 1] (fb.resnet.torch; the printed formula in these units)
    cuda-convnet   the standard deviation, the eigenvalue's square root
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

PIXEL_SCALE = 255
ColorNoiseConvention = Literal["fb", "cuda-convnet"]


@dataclass(frozen=True)
class ColorBasis:
    """Colour statistics of a training set.

    Attributes:
        pixel_scale: Grey levels per unit.
        mean_3: Mean of red, green, blue; float64 (3,), in units of `pixel_scale`.
        covariance_33: Population covariance; float64 (3, 3), in squared units.
        eigenvalues_3: Eigenvalues of the covariance, largest first; float64 (3,).
        eigenvectors_33: Eigenvectors as columns, float64 (3, 3); column i belongs to eigenvalue i, has length one, and
            its entry of largest magnitude is positive.
    """

    pixel_scale: int
    mean_3: np.ndarray
    covariance_33: np.ndarray
    eigenvalues_3: np.ndarray
    eigenvectors_33: np.ndarray

    @property
    def std_3(self) -> np.ndarray:
        """Standard deviation of each channel over all pixels; float64 (3,), in units of `pixel_scale`."""
        return np.sqrt(np.diag(self.covariance_33))

    @classmethod
    def from_covariance(cls, mean_3: np.ndarray, covariance_33: np.ndarray, pixel_scale: int) -> "ColorBasis":
        """Compute the eigenbasis of a covariance."""
        values, vectors = np.linalg.eigh(covariance_33)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        signs = np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(3)])
        return cls(pixel_scale, mean_3, covariance_33, values, vectors * signs)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ColorBasis":
        """Build the basis from a parsed `statistics/color.json`."""
        return cls(
            pixel_scale=int(document["pixel_scale"]),
            mean_3=np.array(document["mean"]),
            covariance_33=np.array(document["covariance"]),
            eigenvalues_3=np.array(document["eigenvalues"]),
            eigenvectors_33=np.array(document["eigenvectors"]),
        )

    def noise(self, alpha_N3: np.ndarray, convention: ColorNoiseConvention) -> np.ndarray:
        """Return the RGB vector to add to each picture.

        Args:
            alpha_N3: Coefficients along the principal components, shape (N, 3).
            convention: Meaning of the factor that the coefficients multiply; see the module.

        Returns:
            RGB vectors, float64 (N, 3), in grey levels.
        """
        lengths_3 = self.eigenvalues_3 if convention == "fb" else np.sqrt(self.eigenvalues_3)
        # Written out, because a matrix product may sum in a different order on another processor, and these bits end
        # up in the pictures.
        shift_N3 = sum((alpha_N3[:, i : i + 1] * lengths_3[i]) * self.eigenvectors_33[:, i] for i in range(3))
        return np.asarray(shift_N3) * self.pixel_scale
