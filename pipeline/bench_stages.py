"""The stages that `pipeline.bench` measures, each as a step that makes one batch from input that is ready in memory."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationConfig, AugmentationParameters, divisor, draw_parameters
from pipeline.online.batch import Decode, Device
from pipeline.online.order import SampleOrder
from pipeline.online.shard_reader import ShardReader

if TYPE_CHECKING:
    import torch

    from pipeline.online.graph import GraphConfig

Step = Callable[[], object]
STAGES = ("read", "parameters", "decode", "augment")
FULL, JPEG_LIBRARY, MEMORY_COPY, CPU_DECODE, PCIE_COPY = (
    "full",
    "JPEG library",
    "memory copy",
    "decode cpu",
    "PCIe copy",
)
OF_ONE_CORE = {"read", "parameters"}
OF_THE_GPU = {"augment", PCIE_COPY}  # on a GPU, these use no core
_SEED = 0
_HELD_PICTURES = 512  # at least; more than fit into a processor's cache, so each stage reads its input from memory
_LOOKAHEAD = 4  # batches, as in `pipeline.online.feed`
_DECODERS: dict[Device, Decode] = {"cpu": "cpu", "gpu": "mixed"}  # the loader's defaults


class Stages:
    """The stages, and upper bounds, for one dataset and device."""

    def __init__(self, dataset: Dataset, batch_size: int, num_threads: int, device: Device) -> None:
        self._dataset, self._batch_size, self._num_threads, self._device = dataset, batch_size, num_threads, device
        self._raw = dataset.member == "npy"
        self._reader = ShardReader(dataset, "train")
        self._order = SampleOrder(dataset.num_samples("train"), _SEED)
        self._augmentation = AugmentationConfig()
        self._crop_size = self._augmentation.crop_of(dataset.stored_size)
        self._num_held = -(-_HELD_PICTURES // batch_size)

    def steps(self) -> Iterator[tuple[str, Step]]:
        """Yield name and step of each stage; a stage is prepared when it is yielded, and is used before the next."""
        # Imported here, so that --help works without DALI, and a missing DALI gives an error of one line.
        from pipeline.online.stage_graphs import build_augment_graph, build_decode_graph

        reads = self._reads()
        yield "read", reads.__next__
        parameters = map(self._draw, self._positions())
        yield "parameters", parameters.__next__

        config = self._graph_config()
        contents = itertools.cycle(list(itertools.islice(reads, self._num_held)))
        if self._device == "gpu":
            yield from self._steps_of_gpu(contents, parameters, config)
            return
        decode = build_decode_graph(contents, config)
        yield "decode", decode.run
        pixels = [np.array(decode.run()[0].as_array()) for _ in range(self._num_held)]
        fed = itertools.cycle([(pixels_NHWC, *next(parameters).values()) for pixels_NHWC in pixels])
        augment = build_augment_graph(fed, config)
        yield "augment", augment.run
        yield from self._full()

        with ThreadPoolExecutor(self._num_threads) as pool:
            if not self._raw:
                yield JPEG_LIBRARY, lambda: self._share(pool, _decode, next(contents))
            crops = itertools.cycle([pixels_NHWC[:, : self._crop_size, : self._crop_size] for pixels_NHWC in pixels])
            images_NHWC = np.empty_like(pixels[0], np.float32)[:, : self._crop_size, : self._crop_size]
            yield MEMORY_COPY, lambda: self._share(pool, _copy, list(zip(images_NHWC, next(crops), strict=True)))

    def _steps_of_gpu(
        self,
        contents: Iterator[list[np.ndarray]],
        parameters: Iterator[AugmentationParameters[np.ndarray]],
        config: "GraphConfig",
    ) -> Iterator[tuple[str, Step]]:
        """Yield what follows on a GPU. A step may return before the GPU has done it."""
        import torch

        from pipeline.online.stage_graphs import build_decode_graph

        decode = build_decode_graph(contents, config)
        yield "decode", decode.run
        pixels = [torch.from_dlpack(decode.run()[0].as_tensor()).clone() for _ in range(self._num_held)]
        yield "augment", self._augment_on_gpu(pixels, parameters, config)
        yield from self._full()
        if not self._raw:
            yield CPU_DECODE, build_decode_graph(contents, dataclasses.replace(config, decode="cpu")).run
        pinned, target = pixels[0].cpu().pin_memory(), torch.empty_like(pixels[0])
        yield PCIE_COPY, lambda: target.copy_(pinned, non_blocking=True)

    def _augment_on_gpu(
        self,
        pixels: Sequence["torch.Tensor"],
        parameters: Iterator[AugmentationParameters[np.ndarray]],
        config: "GraphConfig",
    ) -> Step:
        """Return the kernel's step, or that of DALI's operator where the kernel can't run, as in the loader."""
        import torch

        from pipeline.online.crop_triton import CropKernel, works_on
        from pipeline.online.stage_graphs import build_augment_graph

        drawn = [(pixels_NHWC, next(parameters)) for pixels_NHWC in pixels]
        if not works_on(config.device_id):
            config = dataclasses.replace(config, normalizer="operator")
            return build_augment_graph(
                itertools.cycle([(pixels_NHWC.cpu().numpy(), *values.values()) for pixels_NHWC, values in drawn]),
                config,
            ).run
        device = pixels[0].device
        crop = CropKernel(config.crop_size, config.divisor_3, None, config.output_type, config.layout, device)
        batches = itertools.cycle(
            [
                (
                    pixels_NHWC,
                    torch.from_numpy(values.placement_N3[:, None]).to(device),
                    torch.from_numpy(values.mean_N3).to(device),
                )
                for pixels_NHWC, values in drawn
            ]
        )

        def augment() -> object:
            pixels_NHWC, placement_NK3, mean_N3 = next(batches)
            return crop(pixels_NHWC, None, placement_NK3, mean_N3)

        return augment

    def _full(self) -> Iterator[tuple[str, Step]]:
        from pipeline.loader import LoaderConfig, TrainLoader

        config = LoaderConfig(device=self._device, num_threads=self._num_threads)
        loader = TrainLoader(self._dataset, global_batch_size=self._batch_size, seed=_SEED, config=config)
        with closing(loader):
            yield FULL, loader.__next__

    def _graph_config(self) -> "GraphConfig":
        from pipeline.loader import LoaderConfig
        from pipeline.online.graph import GraphConfig

        return GraphConfig(
            raw=self._raw,
            whole=self._dataset.stores_whole_pictures,
            stored_size=self._dataset.stored_size,
            crop_size=self._crop_size,
            divisor_3=divisor(self._augmentation, self._dataset.color_basis),
            mean_image_HWC=None,
            ten_crops=False,
            output_type="float32",
            layout="NCHW",
            max_batch_size=self._batch_size,
            device=self._device,
            decode=_DECODERS[self._device],
            normalizer="kernel",
            device_id=0,
            num_threads=self._num_threads,
            prefetch_batches=LoaderConfig().prefetch_batches,
        )

    def _positions(self) -> Iterator[np.ndarray]:
        """Yield the positions of the endless stream, one batch at a time."""
        for first in itertools.count(step=self._batch_size):
            yield np.arange(first, first + self._batch_size, dtype=np.int64)

    def _reads(self) -> Iterator[list[np.ndarray]]:
        """Yield batches of bytes, and request those of later batches in advance, as the loader does."""
        ahead: deque[np.ndarray] = deque()
        for sample_ids in map(self._order.sample_ids, self._positions()):
            self._reader.prefetch(sample_ids)
            ahead.append(sample_ids)
            if len(ahead) > _LOOKAHEAD:
                yield self._read(ahead.popleft())

    def _read(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        pictures = [picture for picture in self._reader.read_batch(sample_ids) if picture is not None]
        if len(pictures) < len(sample_ids):
            raise InputError("a picture has changed since it was written; `python -m pipeline.verify DATASET` names it")
        return pictures

    def _draw(self, positions: np.ndarray) -> AugmentationParameters[np.ndarray]:
        epochs, sample_ids = positions // self._order.num_samples, self._order.sample_ids(positions)
        basis, stored_size = self._dataset.color_basis, self._dataset.stored_size
        return draw_parameters(self._augmentation, basis, stored_size, _SEED, epochs, sample_ids)

    def _share(self, pool: ThreadPoolExecutor, work: Callable[[Any], object], items: Sequence[Any]) -> None:
        """Process a batch in threads, an equal part in each."""

        def part(first: int) -> None:
            for item in items[first :: self._num_threads]:
                work(item)

        list(pool.map(part, range(self._num_threads)))


def _decode(content: np.ndarray) -> None:
    simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True, strict=False)


def _copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.copyto(*pair)
