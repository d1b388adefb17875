"""A dry run writes nothing and tells what the run then does."""

import re

import pytest
from coded_source import CodedSource

from pipeline import shard
from pipeline.command import InputError
from pipeline.offline.estimate import estimate
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig


@pytest.mark.parametrize(("encoding", "pixels"), [("raw", True), ("jpeg", False)])
def test_the_estimate_is_what_is_written(tmp_path, encoding, pixels):
    config = ShardingConfig(encoding=EncodingConfig(encoding=encoding, size=32), samples_per_shard=50)
    source = CodedSource(tmp_path, 300, 100, 32, pixels)
    told = estimate(source, source.list_samples(), config, num_workers=2)
    document = shard_dataset(source, tmp_path / "out", config, num_workers=1)
    assert told.num_samples == {split: counts["num_samples"] for split, counts in document["splits"].items()}
    assert told.num_shards == sum(counts["num_shards"] for counts in document["splits"].values())
    written = sum(entry["num_bytes"] for name, entry in document["files"].items() if name.endswith(".tar"))
    assert told.num_bytes == pytest.approx(written, rel=0.1)
    assert told.num_probes == 64 and told.seconds > 0


def test_without_a_source_nothing_is_made_either(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="--dry-run writes nothing"):
        shard.main(["--dry-run"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_nothing(tmp_path, capsys):
    source = tmp_path / "source"
    shard.synthesize(source, classes=2, train_per_class=5, val_per_class=2, max_side=64)
    assert shard.main([str(source), str(tmp_path / "out"), "--dry-run", "--size", "32"]) == 0
    assert re.search(
        r"\ntrain 10, val 4 samples in 2 shards, about \d+ MB in about \d+:\d\d minutes", capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()
