"""The peer for sharding: webdataset's ShardWriter, fed by torchvision through a DataLoader with two workers.

Run by `benchmarks.sharding` as a separate process:

    python -m benchmarks.webdataset_peer writer PHOTOS OUT    workers return pictures, ShardWriter encodes them
    python -m benchmarks.webdataset_peer workers PHOTOS OUT   workers return JPEG bytes

ShardWriter's own encoder always uses JPEG quality 100; the workers use the same quality as all other alternatives.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from webdataset import ShardWriter

from benchmarks.picture_steps import QUALITY, SIZE

_NUM_WORKERS = 2
_BATCH_SIZE = 16
_SAMPLES_PER_SHARD = 1000


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _main(encoder: str, photographs: str, out: str) -> int:
    steps = [Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE), *([_encode] if encoder == "workers" else [])]
    Path(out).mkdir()
    for folder in sorted(Path(photographs).iterdir()):
        loader = DataLoader(
            ImageFolder(folder, Compose(steps)), _BATCH_SIZE, shuffle=True, num_workers=_NUM_WORKERS, collate_fn=list
        )
        with ShardWriter(f"{out}/{folder.name}-%06d.tar", maxcount=_SAMPLES_PER_SHARD, verbose=0) as writer:
            samples = (sample for batch in loader for sample in batch)
            for number, (picture, class_index) in enumerate(samples):
                writer.write({"__key__": f"{number:08d}", "jpg": picture, "cls": class_index})
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
