"""The synthetic loader stands in for the real one: the same protocol, shapes, types and positions."""

import pytest
import torch

from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.synthetic_loader import SyntheticLoader


@pytest.mark.parametrize("config", [LoaderConfig(), LoaderConfig(layout="NHWC", output_type="float16")])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_it_gives_batches_of_the_same_form(raw_dataset, config, rank):
    shared = {"global_batch_size": 10, "rank": rank, "world_size": 3, "samples_seen": 20, "config": config}
    real = TrainLoader(raw_dataset, augmentation=AugmentationConfig(crop_size=28), **shared)
    synthetic = SyntheticLoader(num_samples=41, num_classes=4, crop_size=28, **shared)
    for _ in range(3):
        expected, batch = next(real), next(synthetic)
        for name in vars(expected):
            one, other = getattr(expected, name), getattr(batch, name)
            assert (one.shape, one.dtype, one.stride(), one.device) == (
                other.shape,
                other.dtype,
                other.stride(),
                other.device,
            )
        assert torch.equal(expected.positions, batch.positions)
        assert batch.labels.max() < 4 and batch.sample_ids.max() < 41
    assert synthetic.state_dict() == real.state_dict() == {"samples_seen": 50}
    synthetic.load_state_dict({"samples_seen": 20})
    assert next(synthetic).positions[0] == 20 + rank * 10 // 3
    public = {name for name in dir(real) if not name.startswith("_")} - {"decode_by", "decoding_rates"}  # no JPEGs
    assert public <= {name for name in dir(synthetic) if not name.startswith("_")}
    real.close()
    synthetic.close()
