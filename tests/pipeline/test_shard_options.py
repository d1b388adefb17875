"""Options of the offline stage that choose pixels and samples: --crop squash, --val-last, --max-train-samples."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from coded_source import NUM_CLASSES, CodedSource, coded_pixels

from pipeline import shard
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader
from pipeline.offline.estimate import estimate
from pipeline.offline.shard_plan import ShardingConfig, plan_splits
from pipeline.offline.sharding import shard_dataset
from pipeline.online.shard_reader import ShardReader
from pipeline.pictures.decode import decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.preview import main as preview
from pipeline.sources.detect import open_source
from pipeline.verify import verify
from tests.pipeline.offline.test_sharding import BrokenSource, digest
from tests.pipeline.sources.test_sources import save_idx
from tests.pipeline.test_loader import OblongSource

RAW = EncodingConfig(encoding="raw", size=None)
SQUASH = ShardingConfig(encoding=EncodingConfig(encoding="jpeg", size=24, crop="squash"), samples_per_shard=8)
VAL_LAST = ShardingConfig(encoding=RAW, val_last=7, samples_per_shard=8)
SUBSET = ShardingConfig(encoding=RAW, val_fraction=0.1, max_train_samples=18, samples_per_shard=8)
OPTIONS = {"squash": SQUASH, "val_last": VAL_LAST, "max_train_samples": SUBSET}


class StoppedSource(OblongSource):
    """Is interrupted at a picture that lies in the middle of the run."""

    def read(self, file, offset, num_bytes):
        if offset == 23:
            raise KeyboardInterrupt
        return super().read(file, offset, num_bytes)


def make(kind, root, config):
    """Oblong JPEGs without a `val`, or stored pixels."""
    return kind(root, 40, 0, 32, config.encoding.encoding == "raw")


@pytest.mark.parametrize("option", OPTIONS)
def test_neither_workers_nor_an_interruption_change_a_byte(tmp_path, option):
    config = OPTIONS[option]
    for num_workers in (1, 2):
        shard_dataset(make(OblongSource, tmp_path, config), tmp_path / str(num_workers), config, num_workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    splits = plan_splits(make(OblongSource, tmp_path, config).list_samples(), config)
    stopped = 23 in splits["train"]["offset"].to_pylist()
    assert stopped, "the run would not be interrupted"
    with pytest.raises(KeyboardInterrupt):
        shard_dataset(make(StoppedSource, tmp_path, config), tmp_path / "resumed", config, num_workers=1)
    others = {
        "encoding": replace(config, encoding=EncodingConfig(encoding="jpeg", size=24)),
        "val_last": replace(config, val_fraction=None, val_last=8),
        "max_train_samples": replace(config, max_train_samples=17),
    }
    for field, other in others.items():
        with pytest.raises(InputError, match=rf"holds an interrupted run with other .*{field}"):
            shard_dataset(make(OblongSource, tmp_path, config), tmp_path / "resumed", other, num_workers=1)
    shard_dataset(make(OblongSource, tmp_path, config), tmp_path / "resumed", config, num_workers=1)
    assert digest(tmp_path / "resumed") == digest(tmp_path / "1")
    assert list(verify(Dataset.open(tmp_path / "resumed"), num_workers=1)) == []


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_squashed_pictures_are_squares_for_every_reader(tmp_path, encoding):
    config = replace(SQUASH, encoding=EncodingConfig(encoding=encoding, size=24, crop="squash"))
    oblong = OblongSource(tmp_path, 40, 10, 32, False)
    document = shard_dataset(oblong, tmp_path / "out", config, num_workers=1)
    dataset = Dataset.open(tmp_path / "out")
    assert document["encoding"]["crop"] == "squash"
    rule = "resized to 24x24, whatever its shape (bicubic, antialiased)"
    color = json.loads((dataset.path / "statistics/color.json").read_text())
    assert document["encoding"]["resize_rule"] == color["resize_rule"] == rule
    assert (dataset.stored_size, dataset.stores_whole_pictures) == (24, False)
    manifest = dataset.manifest("train")
    assert set(manifest["width"].to_pylist()) == set(manifest["height"].to_pylist()) == {24}
    numbers = [int(name.split("/")[1]) for name in manifest["source"].to_pylist()]
    squares = [store_picture(oblong.read("", number, 0), config.encoding).pixels_HWC for number in numbers]
    assert dataset.mean_image_HWC == pytest.approx(np.mean(squares, axis=0), abs=1e-4)
    assert color["mean"] == pytest.approx(np.mean(squares, axis=(0, 1, 2)) / 255)
    assert color["num_pixels"] == 40 * 24 * 24
    if encoding == "raw":
        assert np.array_equal(ShardReader(dataset, "train").read(3), squares[3])
    batches = list(EvalLoader(dataset, "val", batch_size=5, rank=0, world_size=1))
    assert sum(len(batch.images) for batch in batches) == 10
    assert preview([str(dataset.path), str(tmp_path / "sheet.png"), "--samples", "2"]) == 0
    assert list(verify(dataset, num_workers=1)) == []


def test_a_squashed_dataset_is_sharded_again_without_a_change_of_size(tmp_path):
    raw = replace(SQUASH, encoding=EncodingConfig(encoding="raw", size=24, crop="squash"))
    shard_dataset(OblongSource(tmp_path, 40, 10, 32, False), tmp_path / "raw", raw, num_workers=1)
    whole = EncodingConfig(encoding="jpeg", size=24, crop="none")
    shard_dataset(
        OblongSource(tmp_path, 40, 10, 32, False), tmp_path / "whole", ShardingConfig(encoding=whole), num_workers=1
    )
    for name in ("raw", "whole"):
        options = ["--encoding", "raw", "--size", "24", "--crop", "squash", "--workers", "1"]
        assert shard.main([str(tmp_path / name), str(tmp_path / f"{name}-again"), *options]) == 0
    first, again = Dataset.open(tmp_path / "raw"), Dataset.open(tmp_path / "raw-again")
    assert sorted(first.manifest("train")["hash"].to_pylist()) == sorted(again.manifest("train")["hash"].to_pylist())
    stored, pressed = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "whole-again")
    (sample_id,) = np.flatnonzero([name == "train/5" for name in stored.manifest("train")["source"].to_pylist()])
    (pressed_id,) = np.flatnonzero([name == "train/5" for name in pressed.manifest("train")["source"].to_pylist()])
    picture_HWC = decode_picture(ShardReader(stored, "train").read(sample_id).tobytes()).pixels_HWC
    assert picture_HWC.shape[0] != picture_HWC.shape[1]
    expected = store_picture(picture_HWC, raw.encoding).pixels_HWC
    assert np.array_equal(ShardReader(pressed, "train").read(pressed_id), expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_estimate_is_what_is_written(tmp_path, option):
    config = OPTIONS[option]
    source = make(OblongSource, tmp_path, config)
    told = estimate(source, source.list_samples(), config, num_workers=1)
    document = shard_dataset(make(OblongSource, tmp_path, config), tmp_path / "out", config, num_workers=1)
    assert told.num_samples == {split: counts["num_samples"] for split, counts in document["splits"].items()}
    written = sum(entry["num_bytes"] for name, entry in document["files"].items() if name.endswith(".tar"))
    # A tar is filled up to whole 10,240 bytes, of which a small one notices much.
    assert written - 10_240 * told.num_shards <= told.num_bytes <= written


def test_the_last_pictures_of_an_idx_file_become_val(tmp_path, capsys):
    images = np.stack([coded_pixels(number, 8)[..., 0] for number in range(50)])
    (tmp_path / "idx").mkdir()
    for prefix, kept in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        save_idx(tmp_path / "idx" / f"{prefix}-images-idx3-ubyte.gz", images[kept])
        save_idx(tmp_path / "idx" / f"{prefix}-labels-idx1-ubyte.gz", np.arange(50)[kept] % 5)
    assert shard.main([str(tmp_path / "idx"), str(tmp_path / "out"), "--val-last", "12", "--workers", "1"]) == 0
    assert "train: 28 samples" in capsys.readouterr().out
    dataset = Dataset.open(tmp_path / "out")
    assert {name: dataset.document[name] for name in ("val_last", "val_fraction")} == {
        "val_last": 12,
        "val_fraction": None,
    }
    for split, numbers in (("train", range(28)), ("val", range(28, 40)), ("test", range(40, 50))):
        reader = ShardReader(dataset, split)
        stored = sorted(reader.read(i)[..., 0].tobytes() for i in range(len(numbers)))
        assert stored == sorted(images[number].tobytes() for number in numbers)


def test_a_subset_is_whole_in_val_noted_and_depends_on_the_seed(tmp_path):
    kept = []
    for seed in (0, 1):
        config = replace(SUBSET, seed=seed)
        document = shard_dataset(CodedSource(tmp_path, 100, 12), tmp_path / str(seed), config, num_workers=1)
        dataset = Dataset.open(tmp_path / str(seed))
        assert document["max_train_samples"] == 18
        assert (dataset.num_samples("train"), dataset.num_samples("val")) == (18, 12)
        assert sorted(np.bincount(dataset.manifest("train")["class_index"]).tolist()) == [4, 4, 5, 5]
        kept.append(set(dataset.manifest("train")["source"].to_pylist()))
    assert kept[0] != kept[1]


def test_all_is_kept_where_there_are_no_more(tmp_path):
    for name, number in (("exactly", 40), ("more", 1000)):
        config = replace(SUBSET, max_train_samples=number)
        document = shard_dataset(CodedSource(tmp_path), tmp_path / name, config, num_workers=1)
        assert document["splits"]["train"]["num_samples"] == 40
    files = [Dataset.open(tmp_path / name).document["files"] for name in ("exactly", "more")]
    assert files[0] == files[1]


def test_rejects_are_counted_among_the_chosen(tmp_path):
    config = ShardingConfig(encoding=RAW, max_train_samples=30, max_rejects=0.5)
    document = shard_dataset(BrokenSource(tmp_path), tmp_path / "out", config, num_workers=1)
    rejects = pq.read_table(tmp_path / "out/rejects.parquet")["source"].to_pylist()
    chosen = plan_splits(BrokenSource(tmp_path).list_samples(), config)["train"]["source"].to_pylist()
    broken = [source for source in chosen if source in {"train/0", "train/10", "train/20", "train/30"}]
    assert sorted(rejects) == sorted(broken) and broken
    assert document["splits"]["train"]["num_samples"] + len(rejects) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "squash"], "crop is 'squash', which is for jpeg and raw with a size"),
        (["--val-last", "0"], "val_last is 0; it must be at least 1"),
        (["--val-last", "3", "--val-fraction", "0.05"], "val_last is 3 beside val_fraction 0.05; give one of them"),
        (["--val-last", "12"], "--val-last is 12, but the source has 12 training samples; some must be left"),
        (["--val-last", "9"], r"would leave no training sample of 1 classes \(the first is 3\)"),
        (["--max-train-samples", "0"], "max_train_samples is 0; it must be at least 1"),
        (["--max-train-samples", "3"], "--max-train-samples is 3, but the training samples have 4 classes"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, message):
    (tmp_path / "idx").mkdir()
    save_idx(tmp_path / "idx/train-images-idx3-ubyte", np.zeros((12, 4, 4)))
    save_idx(tmp_path / "idx/train-labels-idx1-ubyte", np.arange(12) % NUM_CLASSES)
    with pytest.raises(InputError, match=message):
        shard.main([str(tmp_path / "idx"), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_val_of_the_sources_own_is_not_replaced(tmp_path, raw_dataset):
    with pytest.raises(InputError, match="this one has 10 validation samples of its own: leave the option out"):
        shard.main([str(raw_dataset.path), str(tmp_path / "out"), "--val-last", "3"])
    assert not (tmp_path / "out").exists()
    assert open_source(raw_dataset.path).list_samples().splits["val"].num_rows == 10
