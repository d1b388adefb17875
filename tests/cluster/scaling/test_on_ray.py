"""Which nodes of a Ray cluster may get workers of a scaling experiment."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from cluster.scaling import on_ray as on_ray_module
from cluster.scaling.on_ray import on_ray
from cluster.scaling.worker import Settings
from pipeline.command import InputError


class _FitNodes:
    """Finds nodes that all have the first dataset alone."""

    def __init__(self, requirements, is_local) -> None:
        self._has_dataset = requirements.dataset_path in (None, "first")

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def place(self, place, needs_all=False):
        if not self._has_dataset:
            raise InputError("a node lacks it")
        return place([{"CPU": 8.0}])


@pytest.fixture(autouse=True)
def session(monkeypatch):
    monkeypatch.setattr(on_ray_module, "training_session", lambda: contextlib.nullcontext(False))
    monkeypatch.setattr(on_ray_module, "FitNodes", _FitNodes)


def test_nodes_must_have_all_datasets(tmp_path):
    settings = Settings(num_steps=1, num_warm_up_steps=2)
    first, second = (SimpleNamespace(path=path, sha256=path, num_shards=1) for path in ("first", "second"))
    for datasets in ([], [first]):
        with on_ray(settings, tmp_path, datasets, [1, 2]) as place:
            assert place.place(2).num_workers == 2
    with (
        pytest.raises(InputError, match="a node lacks it"),
        on_ray(settings, tmp_path, [first, second], [1, 2]),
    ):
        pass
