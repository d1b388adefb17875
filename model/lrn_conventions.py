"""The constants of local response normalisation by the name of their source. Loads no torch; see `model/lrn.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Convention:
    """The constants of one source; `alpha` always multiplies the *sum* of squares, even if the source uses the mean.

    Attributes:
        size: Number of neighbouring channels n, odd.
        alpha: Factor of the sum of squares.
        beta: Exponent.
        k: Constant term, added before the power.
    """

    size: int
    alpha: float
    beta: float
    k: float


CONVENTIONS = {
    # The paper's formula and constants; torch.nn.LocalResponseNorm(5, alpha=5e-4, k=2).
    "printed": Convention(size=5, alpha=1e-4, beta=0.75, k=2.0),
    # Caffe's bvlc_alexnet, and ONNX: alpha is divided by n, and k is 1.
    "caffe": Convention(size=5, alpha=1e-4 / 5, beta=0.75, k=1.0),
    # The paper's constants passed to torch.nn.LocalResponseNorm(5, alpha=1e-4, k=2), which divides alpha by n.
    "pytorch": Convention(size=5, alpha=1e-4 / 5, beta=0.75, k=2.0),
    # The defaults of tf.nn.local_response_normalization: depth_radius 5, nothing divided.
    "tensorflow": Convention(size=11, alpha=1.0, beta=0.5, k=1.0),
}
