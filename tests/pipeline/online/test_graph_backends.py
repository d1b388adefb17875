"""The graph for the GPU, defined where there is none: DALI's registry has each of its operators for its back end."""

import dataclasses
import itertools
from types import ModuleType

import numpy as np
import pytest
from nvidia.dali import backend, fn, ops
from nvidia.dali.pipeline import Pipeline

from pipeline.online import dali_quirks, graph
from pipeline.online.graph import GraphConfig, build_graph, define_graph

PER_SAMPLE = {"CropMirrorNormalize": ("crop_pos_x", "crop_pos_y", "mirror", "mean"), "Resize": ("roi_start", "roi_end")}
BASE = GraphConfig(
    raw=False,
    whole=False,
    stored_size=256,
    crop_size=224,
    divisor_3=np.ones(3, dtype=np.float32),
    mean_image_HWC=None,
    ten_crops=False,
    output_type="float32",
    layout="NCHW",
    max_batch_size=4,
    device="cpu",
    decode="cpu",
    normalizer="operator",
    device_id=0,
    num_threads=1,
    prefetch_batches=2,
)
MEAN_IMAGE = np.zeros((256, 256, 3), dtype=np.float32)
FORMS = {
    " ".join([encoding, *(["mean image"] if subtract else []), *(["ten crops"] if ten_crops else [])]): {
        "raw": encoding == "raw",
        "whole": encoding == "original",
        "mean_image_HWC": MEAN_IMAGE if subtract else None,
        "ten_crops": ten_crops,
    }
    for encoding, subtract, ten_crops in itertools.product(("jpeg", "raw", "original"), (False, True), (False, True))
}


class _Recorder:
    """Stands for DALI's `fn` while a graph is defined, and notes each operator with the device on which it runs."""

    def __init__(self, module, prefix: str, found: list[tuple[str, str]]) -> None:
        self._module, self._prefix, self._found = module, prefix, found

    def __getattr__(self, name: str):
        member = getattr(self._module, name)
        if isinstance(member, ModuleType):
            return _Recorder(member, f"{self._prefix}{name}__", self._found)

        def call(*inputs, **options):
            output = member(*inputs, **options)
            if name != "external_source":  # what is fed is no operator with a back end
                schema_name = self._prefix + "".join(word.capitalize() for word in name.split("_"))
                self._found.append((schema_name, options.get("device") or output.device))
            return output

        return call


def _operators(config: GraphConfig) -> list[tuple[str, str]]:
    """Return name and device of every operator that a graph is defined with."""
    found: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "fn", _Recorder(fn, "", found))
        define_graph(lambda: None, config)
    return found


BACK_ENDS = {"cpu": ("cpu", "cpu"), "gpu": ("gpu", "mixed"), "gpu, decoded by the cpu": ("gpu", "cpu")}


@pytest.mark.parametrize(("device", "decode"), BACK_ENDS.values(), ids=BACK_ENDS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_operator_exists_for_its_back_end(device, decode, form):
    registry = {"cpu": ops.cpu_ops(), "gpu": ops.gpu_ops(), "mixed": ops.mixed_ops()}
    operators = _operators(dataclasses.replace(BASE, device=device, decode=decode, **form))
    names = {name for name, _ in operators}
    assert "CropMirrorNormalize" in names
    assert ("decoders__Image" in names) == (not form["raw"]) and ("Resize" in names) == form["whole"]
    for name, on in operators:
        assert name in registry[on], (name, on)
        for argument in PER_SAMPLE.get(name, ()):
            assert backend.GetSchema(name).IsTensorArgument(argument), (name, argument)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_pictures_stay_on_the_gpu_once_they_are_there(form):
    def devices(back_end: str) -> dict[str, set[str]]:
        device, decode = BACK_ENDS[back_end]
        found: dict[str, set[str]] = {}
        for name, on in _operators(dataclasses.replace(BASE, device=device, decode=decode, **form)):
            found.setdefault(name, set()).add(on)
        return found

    for back_end, (_, decode) in BACK_ENDS.items():
        found = devices(back_end)
        if back_end == "cpu":
            assert set().union(*found.values()) == {"cpu"}
            continue
        assert found["CropMirrorNormalize"] == {"gpu"}
        assert found.get("Resize", {"gpu"}) == {"gpu"} and found.get("decoders__Image", {decode}) == {decode}


def _fed(num_samples: int, side: int) -> tuple:
    generator, free = np.random.default_rng(0), 256 - 224
    pictures = list(generator.integers(0, 256, (num_samples, side, side, 3), dtype=np.uint8))
    placement_N3 = generator.integers(0, free + 1, (num_samples, 3), dtype=np.int32)
    placement_N3[:, 2] = np.arange(num_samples) % 2
    return pictures, placement_N3, generator.normal(120, 9, (num_samples, 3)).astype(np.float32)


@pytest.mark.parametrize("output_type", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", [form for form in FORMS.values() if form["raw"]], ids=[f for f in FORMS if "raw" in f])
def test_the_kernel_of_the_cpu_makes_the_operators_bits(form, layout, output_type):
    fed = _fed(6, side=256)
    mean_image = np.random.default_rng(1).uniform(90, 140, MEAN_IMAGE.shape).astype(np.float32)
    options = form | {"mean_image_HWC": None if form["mean_image_HWC"] is None else mean_image}
    divisor_3 = np.float32([58.4, 57.1, 57.4])
    config = dataclasses.replace(
        BASE, **options, layout=layout, output_type=output_type, divisor_3=divisor_3, max_batch_size=6
    )
    images = {}
    for normalizer in ("operator", "kernel"):
        (output,) = build_graph(lambda: fed, dataclasses.replace(config, normalizer=normalizer)).run()
        images[normalizer] = np.array(output.as_tensor())
    assert images["kernel"].dtype == output_type and images["kernel"].astype(np.float32).std() > 0.5
    np.testing.assert_array_equal(images["kernel"], images["operator"])


@pytest.mark.parametrize("lacks", ["the class", "its method"])
def test_a_dali_that_takes_no_compiled_functions_makes_the_same_bits(monkeypatch, lacks):
    fed, config = _fed(2, side=256), dataclasses.replace(BASE, raw=True, normalizer="kernel", max_batch_size=2)

    def image_and_operators():
        (output,) = build_graph(lambda: fed, config).run()
        return np.array(output.as_tensor()), {name for name, _ in _operators(config)}

    by_kernel, operators = image_and_operators()
    assert "CropMirrorNormalize" not in operators  # of this DALI, the kernel is used
    if lacks == "its method":
        monkeypatch.delattr(dali_quirks.NumbaFunction, "_get_run_fn_cpu")
    else:
        monkeypatch.setattr(dali_quirks, "NumbaFunction", None)
    by_operator, operators = image_and_operators()
    assert "CropMirrorNormalize" in operators
    np.testing.assert_array_equal(by_kernel, by_operator)


@pytest.mark.parametrize("mean_image_HWC", [None, MEAN_IMAGE], ids=["too small", "of another size than the mean image"])
def test_the_kernel_reads_nothing_outside_of_a_picture(mean_image_HWC):
    side = 200 if mean_image_HWC is None else 230
    config = dataclasses.replace(BASE, raw=True, normalizer="kernel", mean_image_HWC=mean_image_HWC)
    (output,) = build_graph(lambda: _fed(2, side), config).run()
    assert np.isnan(np.array(output.as_tensor())).all()


def _on_a_gpu_with(monkeypatch, **versions: int) -> None:
    """Have DALI look, at the next pipeline's build as at the first one on a GPU, for libraries of these versions."""
    found = {"GetCudaVersion": 13000, "GetCufftVersion": 12000, "GetNppVersion": 13000} | versions
    for name, version in found.items():
        monkeypatch.setattr(backend, name, lambda version=version: version)
    monkeypatch.setattr(backend, "cuda_checked", False)
    build = Pipeline.build

    def build_and_look(pipeline: Pipeline) -> None:
        backend.check_cuda_runtime()
        build(pipeline)

    monkeypatch.setattr(Pipeline, "build", build_and_look)


def test_the_lack_of_a_library_that_the_graph_does_not_use_is_no_warning(monkeypatch):
    _on_a_gpu_with(monkeypatch, GetNppVersion=-1)
    build_graph(lambda: None, BASE)
    assert backend.cuda_checked
    with pytest.warns(Warning, match="NPP is typically"):  # which DALI gives otherwise
        monkeypatch.setattr(backend, "cuda_checked", False)
        backend.check_cuda_runtime()


@pytest.mark.parametrize(
    ("lacks", "message"), [("GetCufftVersion", "cuFFT is typically"), ("GetCudaVersion", "GPU is not available")]
)
def test_other_things_that_dali_lacks_are_still_told(monkeypatch, lacks, message):
    _on_a_gpu_with(monkeypatch, **{lacks: -1})
    with pytest.warns(Warning, match=message):
        build_graph(lambda: None, BASE)
