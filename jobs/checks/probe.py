"""A probe: tries one library in this process and prints what it found as a line of JSON; started by `probes.py`."""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

_GREY, _SIDE = 120, 16  # of the picture that is decoded
_TOLERANCE = 8  # grey levels; decoders differ by one or two


def try_imports(*names: str) -> dict[str, Any]:
    """Import modules, and return the error of each that can't be imported."""
    errors = {}
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a module may even end the process
            errors[name] = _described(error)
    return {"errors": errors}


def try_torch() -> dict[str, Any]:
    """Compute on each device; return version, CUDA build, GPUs, and the precision that `auto` would be."""
    import torch

    from cluster.worker.precision import bfloat16_emulation, choose_precision

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpu = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "error": "",
        }
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            if float((ones @ ones).sum()) != 64**3:
                gpu["error"] = "multiplies matrices wrongly"
        except RuntimeError as error:
            gpu["error"] = _described(error)
        gpus.append(gpu)
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    emulation = bfloat16_emulation(device)
    choice = choose_precision("auto", None, [] if emulation is None else [emulation])
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "precision": choice.precision,
        "reason": choice.reason,
    }


def try_dali(device: str) -> dict[str, Any]:
    """Decode a picture by this project's own graph on `cpu` or `gpu`."""
    import numpy as np
    import simplejpeg

    from pipeline.online.graph import GraphConfig
    from pipeline.online.stage_graphs import build_decode_graph

    pixels_HWC = np.full((_SIDE, _SIDE, 3), _GREY, dtype=np.uint8)
    jpeg = np.frombuffer(simplejpeg.encode_jpeg(pixels_HWC), dtype=np.uint8)
    on_gpu = device == "gpu"
    config = GraphConfig(
        raw=False,
        whole=False,
        stored_size=_SIDE,
        crop_size=_SIDE,
        divisor_3=np.ones(3, dtype=np.float32),
        mean_image_HWC=None,
        ten_crops=False,
        output_type="float32",
        layout="NCHW",
        max_batch_size=1,
        device="gpu" if on_gpu else "cpu",
        decode="mixed" if on_gpu else "cpu",
        normalizer="none",
        device_id=0,
        num_threads=1,
        prefetch_batches=1,
    )
    (output,) = build_decode_graph(iter([[jpeg]] * 8), config).run()
    found_NHWC = np.asarray((output.as_cpu() if on_gpu else output).as_array())
    difference = int(np.abs(found_NHWC.astype(int) - _GREY).max())
    if found_NHWC.shape != (1, _SIDE, _SIDE, 3) or difference > _TOLERANCE:
        return {"error": f"decodes wrongly: by {difference} grey levels"}
    return {}


def try_jpeg() -> dict[str, Any]:
    """Encode a picture and decode it as the offline stage does; return the libraries' versions."""
    import numpy as np
    import PIL
    import simplejpeg
    from PIL import features

    from pipeline.pictures.decode import decode_picture

    pixels_HWC = np.full((_SIDE, _SIDE, 3), _GREY, dtype=np.uint8)
    decoded = decode_picture(simplejpeg.encode_jpeg(pixels_HWC))
    difference = int(np.abs(decoded.pixels_HWC.astype(int) - _GREY).max())
    if difference > _TOLERANCE:
        return {"error": f"decodes wrongly: by {difference} grey levels"}
    turbo = features.version_feature("libjpeg_turbo")
    return {"simplejpeg": simplejpeg.__version__, "pillow": PIL.__version__, "libjpeg_turbo": turbo}


def try_job_server(address: str) -> dict[str, Any]:
    """Ask a Ray's job server for its version."""
    from cluster.launch.ray_submission import client_version, job_server_version

    return {"server": job_server_version(address), "here": client_version()}


def try_cluster() -> dict[str, Any]:
    """Join the Ray cluster of this environment, and return its nodes and how far their clocks differ from this one."""
    from dataclasses import asdict

    from cluster.launch.ray_clocks import clocks_of_nodes
    from pipeline.system.ray_session import ray_session

    with ray_session("auto"):
        return {"clocks": [asdict(clock) for clock in clocks_of_nodes()]}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "imports": try_imports,
    "torch": try_torch,
    "dali": try_dali,
    "jpeg": try_jpeg,
    "job-server": try_job_server,
    "cluster": try_cluster,
}


def main(words: list[str]) -> int:
    """Run the probe that the first word names, with the others as its arguments."""
    try:
        answer = PROBES[words[0]](*words[1:])
    except BaseException as error:  # whatever it is, it is the answer
        answer = {"error": _described(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


def _described(error: BaseException) -> str:
    """Return an error in one line; our own say what to do, too."""
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name} is not installed"
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if type(error).__name__ == "InputError" else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
