"""Read a dataset's JPEG shards with DALI's own reader: python examples/readers/with_dali.py DATASET SPLIT.

The reader takes the DALI indices (.idx) that lie beside the shards, so it does not have to read the shards first. With
`device_id=0` and `device="mixed"` a GPU decodes.
"""

import argparse
from pathlib import Path

from nvidia.dali import fn, pipeline_def, types

BATCH_SIZE = 16
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("dataset", type=Path)
parser.add_argument("split")
arguments = parser.parse_args()
shards = sorted(arguments.dataset.glob(f"{arguments.split}-*.tar"))
if not shards:
    parser.error(f"{arguments.dataset} has no shards of {arguments.split}")


@pipeline_def(batch_size=BATCH_SIZE, num_threads=2, device_id=None)
def graph():
    """Decode the pictures; a label is the ASCII digits of the class index."""
    jpegs, digits = fn.readers.webdataset(
        name="shards",
        paths=[str(path) for path in shards],
        index_paths=[str(path.with_suffix(".idx")) for path in shards],
        ext=["jpg", "cls"],
        dtypes=[types.UINT8, types.UINT8],
        missing_component_behavior="error",
    )
    return fn.decoders.image(jpegs), digits


pipeline = graph()
pipeline.build()
num_samples = pipeline.reader_meta("shards")["epoch_size"]
labels = []
while len(labels) < num_samples:  # the reader begins again after the last sample
    pictures, digits = pipeline.run()
    labels += [int(bytes(digits.at(i))) for i in range(min(BATCH_SIZE, num_samples - len(labels)))]
    shape = pictures.at((len(labels) - 1) % BATCH_SIZE).shape
print(f"{len(labels)} samples, the last of {shape}; first labels {labels[:8]}")
