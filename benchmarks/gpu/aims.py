"""The aims for one H100 with 16 cores, and the names of the alternatives that they compare.

All are measured in batches of `BATCH_SIZE`, in at least three interleaved rounds with what they are compared with.
"""

from typing import Any

from benchmarks.record import Comparison, Values

BATCH_SIZE = 256

STEP = "alexnet_2012, step alone"
STEP_WITHOUT_LRN = "alexnet_2012, step without LRN"
STEP_TORCH_LRN = "alexnet_2012, step with torch's LRN"
# Alone, its few kernels take less time than their launch, which in a step is hidden behind other kernels.
DROPOUT = "alexnet_2012, dropout alone as a CUDA graph"
DROPOUT_LAUNCHED = "alexnet_2012, dropout alone"
OWT_STEP = "alexnet_owt, step alone"
TORCHVISION_STEP = "torchvision's alexnet, step alone"

COMPUTING = "training: step alone"
LOADING = "training: its loader alone, JPEG"
SLOWER = "training: the slower of step and loader"
TRAINING = "training from JPEG"
TRAINING_CACHED = "training from the GPU's cache"
WATCHED_TRAINING = "training, watched for waits"

SAME_DECODER = "GPU and CPU, same decoder, float32"
SAME_DECODER_FLOAT16 = "GPU and CPU, same decoder, float16"
OTHER_DECODER = "GPU and CPU, each its own decoder or resizing"

IMAGES, MILLISECONDS = "images_per_second", "milliseconds_per_step"
CORES, CORES_BESIDE_DALI = "cores", "cores_beside_dali"
WAITS = "waits_per_step"
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = "largest_difference_grey_levels", "mean_difference_grey_levels"
QUANTITIES = {
    IMAGES: "pictures by the wall clock, after a warm-up; all queued work is waited for at both ends",
    MILLISECONDS: "forward, loss, backward and update of one batch",
    CORES: "CPU time of all threads of the process per second",
    CORES_BESIDE_DALI: "the same without DALI's own threads",
    WAITS: "lines of the step at which the CPU waits for the GPU, by torch's synchronization warnings",
    LARGEST_DIFFERENCE: "largest difference of a value of the finished pictures, in grey levels",
    MEAN_DIFFERENCE: "mean of those differences",
}
AIMS = (
    Comparison(of=STEP, quantity=MILLISECONDS, to=STEP_WITHOUT_LRN, at_most=1.15),
    Comparison(of=DROPOUT, quantity=MILLISECONDS, to=STEP, at_most=0.02),
    Comparison(of=OWT_STEP, quantity=IMAGES, to=TORCHVISION_STEP, at_least=1.2),
    Comparison(of=TRAINING, quantity=IMAGES, to=SLOWER, at_least=0.9),
    Comparison(of=TRAINING_CACHED, quantity=IMAGES, to=COMPUTING, at_least=0.97),
    Comparison(of=TRAINING, quantity=CORES_BESIDE_DALI, at_most=2),
    Comparison(of=WATCHED_TRAINING, quantity=WAITS, at_most=0),
    Comparison(of=SAME_DECODER, quantity=LARGEST_DIFFERENCE, at_most=1e-3),
    Comparison(of=SAME_DECODER_FLOAT16, quantity=LARGEST_DIFFERENCE, at_most=0.1),
    Comparison(of=OTHER_DECODER, quantity=LARGEST_DIFFERENCE, at_most=40),
    Comparison(of=OTHER_DECODER, quantity=MEAN_DIFFERENCE, at_most=1.5),
)


def judged_aims(values: Values) -> list[dict[str, Any]]:
    """Return each aim with its value, and whether it is met; value and `met` are None if it was not measured."""
    return [aim.judge(values) if aim.is_measured(values) else aim.unmeasured() for aim in AIMS]


def bounds(alternative: str) -> dict[str, float]:
    """Return the upper bounds of an alternative's own quantities."""
    aims = [aim for aim in AIMS if aim.of == alternative and aim.to is None]
    return {aim.quantity: aim.at_most for aim in aims if aim.at_most is not None}
