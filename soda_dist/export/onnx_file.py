"""The encoder as one ONNX file, checked against PyTorch in onnxruntime; int8 on request."""

import json
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.config.schema import RunConfig
from soda_dist.errors import MachineError, UserError
from soda_dist.export.encoder import TOLERANCE, difference, noise_images, preprocessing
from soda_dist.parallel.progress import Say

OPSET = 17
BATCHES = (1, 3)
"""Sizes of the batches that check the file."""
INSTALL = "pip install 'soda_dist[onnx]'"


def check_packages(*, int8: bool) -> None:
    """Raise a `UserError` if a package is missing: onnx, and onnxruntime for `int8`."""
    for package in ("onnx", "onnxruntime") if int8 else ("onnx",):
        if find_spec(package) is None:
            raise UserError("--to", f"onnx without the package {package}", "an environment with it", INSTALL)


def onnx_bytes(
    encoder: nn.Module, config: RunConfig, facts: dict[str, str], say: Say, *, int8: bool, images: Tensor | None
) -> bytes:
    """Write the encoder as ONNX: input `images`, float32 [N, 3, s, s], output `z`, float32 [N, D], for any N.

    Args:
        facts: for the file's metadata, beside the preprocessing.
        int8: quantise the weights to 8 bits, and activations as they come (onnxruntime's dynamic quantisation).
        images: inputs [n, 3, s, s] on which `int8` is compared with float; None = noise.

    Raises:
        UserError: a missing package, or a layer that ONNX lacks.
        MachineError: the file computes something else.
    """
    check_packages(int8=int8)
    content = _exported(encoder, config)
    _check(content, encoder, config, say)
    if int8:
        content = _quantized(content)
        _compare(content, encoder, config, say, images)
    return _with_metadata(content, {**facts, "preprocessing": json.dumps(preprocessing(config))})


def _exported(encoder: nn.Module, config: RunConfig) -> bytes:
    """Trace the encoder with torch's TorchScript exporter.

    It needs a second where the exporter through `torch.export` needs a minute and onnxscript, and an encoder has
    neither branches nor loops that a trace would miss.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            out = Path(folder, "encoder.onnx")
            warnings.simplefilter("ignore")  # on the older exporter, and on sizes that a trace makes constant
            torch.onnx.export(
                encoder,
                (noise_images(config, 2),),
                out,
                input_names=["images"],
                output_names=["z"],
                dynamic_axes={"images": {0: "N"}, "z": {0: "N"}},
                opset_version=OPSET,
                dynamo=False,
            )
            return out.read_bytes()
    except torch.onnx.errors.UnsupportedOperatorError as error:
        got = f"onnx of an encoder with a layer that ONNX lacks ({str(error).splitlines()[0][:100]})"
        raise UserError("--to", got, "layers of ONNX", "use --to hub") from None


def _check(content: bytes, encoder: nn.Module, config: RunConfig, say: Say) -> None:
    if find_spec("onnxruntime") is None:
        say(f"not checked against PyTorch: onnxruntime is not installed ({INSTALL})")
        return
    found = 0.0
    for count in BATCHES:
        images = noise_images(config, count)
        found = max(found, difference(encoder(images), _run(content, images)))
    if not found <= TOLERANCE:
        raise MachineError(f"onnxruntime differs from PyTorch by {found:.1e}; report it with the run's config.yaml")
    say(f"onnxruntime equals PyTorch to {found:.1e}")


def _run(content: bytes, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (z,) = session.run(None, {"images": np.ascontiguousarray(images.numpy())})
    return torch.from_numpy(z)


def _quantized(content: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, small = (str(Path(folder, f"{name}.onnx")) for name in ("float", "ready", "int8"))
        Path(whole).write_bytes(content)
        quant_pre_process(whole, ready, skip_symbolic_shape=True)
        # onnxruntime's CPU kernels of integer convolutions take unsigned weights only.
        quantize_dynamic(ready, small, weight_type=QuantType.QUInt8)
        return Path(small).read_bytes()


def _compare(content: bytes, encoder: nn.Module, config: RunConfig, say: Say, images: Tensor | None) -> None:
    given = noise_images(config, 16) if images is None else images
    with torch.no_grad():
        cosine = F.cosine_similarity(encoder(given).flatten(1), _run(content, given).flatten(1))
    of = "noise images" if images is None else "images"
    say(f"int8: cosine similarity of z with float {cosine.mean():.4f}, lowest {cosine.min():.4f}, {len(given)} {of}")


def _with_metadata(content: bytes, facts: dict[str, str]) -> bytes:
    import onnx

    model: Any = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, facts)
    return model.SerializeToString()
