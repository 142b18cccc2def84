"""Where the networks under evaluation come from: a run's checkpoint, an exported folder, an encoder's file, timm."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from soda_dist.config.load import with_fields
from soda_dist.config.older import parse_stored
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.data.storage.metadata import read_limited
from soda_dist.errors import UserError
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.lr_equalization import load_plain_state_dict
from soda_dist.models.method import Method
from soda_dist.models.pretrained import FrozenEncoder, UnsuitableModelError, load_frozen
from soda_dist.runs.folder import read_config
from soda_dist.training.build import build_encoder, build_model, load_frozen_weights
from soda_dist.training.checkpoint import MODEL, exported_config, load_exported, load_model, weights_digest
from soda_dist.training.checkpoint_files import check_size, parse_tensors, size_of
from soda_dist.weights import fill

TIMM = "timm:"


class ModelSource(Protocol):
    """Says where networks come from; small enough to be sent to every actor."""

    def configuration(self) -> RunConfig:
        """The run's configuration, with the network's image sizes."""

    def load(self) -> Method | EncoderAlone:
        """The network, in eval mode on the CPU."""

    def fresh(self, config: RunConfig) -> Method | EncoderAlone:
        """The same architecture with initial weights of the configuration's seed, in eval mode."""

    def digest(self) -> str:
        """SHA-256 that belongs to the weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint of a run."""

    run: Folder
    step: int
    ema: bool

    def configuration(self) -> RunConfig:
        """The run's own."""
        return read_config(self.run)

    def load(self) -> Method:
        """Load the EMA weights, or those that training resumes from."""
        return load_model(self.run, self.step, ema=self.ema)[0]

    def fresh(self, config: RunConfig) -> Method:
        """The run's model at its first step."""
        return _initial(config)

    def digest(self) -> str:
        """Over the checkpoint's own digests: no file is read for it."""
        return weights_digest(self.run, self.step, ema=self.ema)


@dataclass(frozen=True)
class Exported:
    """A folder with `model.safetensors` and `config.json`: an export, or the copy of a checkpoint. EMA weights."""

    folder: Folder

    def configuration(self) -> RunConfig:
        """That of the run which wrote the model."""
        return exported_config(self.folder)

    def load(self) -> Method:
        """The run's model."""
        return load_exported(self.folder)[0]

    def fresh(self, config: RunConfig) -> Method:
        """The same model before training."""
        return _initial(config)

    def digest(self) -> str:
        """Of the weights' file."""
        return hashlib.sha256(self.folder.read(MODEL)).hexdigest()


@dataclass(frozen=True)
class EncoderFile:
    """`encoder.safetensors` of a checkpoint, with the checkpoint's `config.json` beside it."""

    uri: str

    def configuration(self) -> RunConfig:
        """That of the run which wrote the file."""
        folder, name = locate(self.uri)
        if not folder.exists(name):
            raise UserError("--encoder", self.uri, "an existing file, or timm:NAME", "check the path")
        try:
            text = read_limited(folder, "config.json")
        except FileNotFoundError:
            got = f"{self.uri} without config.json beside it"
            allowed = "encoder.safetensors in a checkpoint's folder, or timm:NAME"
            raise UserError("--encoder", got, allowed, "copy both files") from None
        return parse_stored(text, folder.file_uri("config.json"))

    def load(self) -> EncoderAlone:
        """The run's encoder."""
        config, content = self.configuration(), self._content()
        encoder = build_encoder(config)
        try:
            load_plain_state_dict(encoder, parse_tensors(content, self.uri))
        except ValueError as error:
            got = f"{self.uri} ({str(error).splitlines()[0]})"
            raise UserError("--encoder", got, "the encoder of the config.json beside it", "copy both files") from None
        return EncoderAlone(encoder).eval().requires_grad_(False)

    def fresh(self, config: RunConfig) -> EncoderAlone:
        """The same encoder before training."""
        return EncoderAlone(build_encoder(config)).eval()

    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        with torch.device("meta"):
            size = size_of(build_encoder(self.configuration()))
        folder, name = locate(self.uri)
        with folder.open(name) as file:
            check_size(file.size(), size, self.uri)
        return folder.read(name)


@dataclass(frozen=True)
class TimmEncoder:
    """A model of timm without its classifier, with weights of a file, or those that timm publishes."""

    model: str
    weights: str | None
    sha256: str | None

    def configuration(self) -> RunConfig:
        """The sizes and the crop that the model was made for."""
        info = _frozen(self.model, 32).backbone.pretrained_cfg
        size, share = info["input_size"][1], info.get("crop_pct") or 1.0
        small: dict[str, object] = {
            "data.source_size": size,
            "data.target_size": size,
            "data.eval_resize": round(1 / share, 6),
        }
        small["train.precision"] = "fp32"
        return with_fields(RunConfig(), {**small, "denoiser.attention_resolutions": []})

    def load(self) -> EncoderAlone:
        """Filled, or a `UserError` where the weights cannot be had."""
        encoder = _frozen(self.model, self.configuration().data.source_size)
        if self.weights is not None:
            assert self.sha256 is not None
            folder, name = locate(self.weights)
            if not folder.exists(name):
                raise UserError("--weights", self.weights, "an existing file", "check the path")
            load_frozen(encoder, folder.read(name), self.sha256)
        else:
            fill(encoder.backbone.state_dict(), self._published(), field="--encoder", network=self.model)
        return EncoderAlone(encoder).eval()

    def fresh(self, config: RunConfig) -> EncoderAlone:
        """The same model with initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return EncoderAlone(_frozen(self.model, config.data.source_size)).eval()

    def digest(self) -> str:
        """Over the tensors."""
        return _digest(self.load().encoder.state_dict())

    def _published(self) -> Mapping[str, Tensor]:
        import timm

        try:
            return timm.create_model(self.model, pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # each of its sources has its own errors
            got = f"{TIMM}{self.model}, whose weights cannot be had ({type(error).__name__})"
            remedy = "give a file by --weights and --weights-sha256, or name a model with a tag"
            raise UserError("--encoder", got, "published weights within reach", remedy) from None


def _initial(config: RunConfig) -> Method:
    model = build_model(config)
    load_frozen_weights(model, config)
    return model.eval()


def _frozen(model: str, size: int) -> FrozenEncoder:
    try:
        return FrozenEncoder(model=model, image_size=size)
    except UnsuitableModelError as error:
        raise UserError("--encoder", f"{TIMM}{error.got}", error.allowed, "name a timm model") from None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def encoder_source(text: str, weights: str | None, sha256: str | None) -> ModelSource:
    """The model source that `--encoder` names.

    Raises:
        UserError: weights without a digest or the other way round, or weights beside an encoder's file.
    """
    named = text.removeprefix(TIMM) if text.startswith(TIMM) else None
    if (weights is None) != (sha256 is None):
        got = "one of --weights and --weights-sha256"
        raise UserError("--weights", got, "both, or none", "give the file and its digest")
    if named is None:
        if weights is not None:
            raise UserError("--weights", f"{weights} with --encoder {text}", "a model of timm", "leave it out")
        return EncoderFile(text)
    return TimmEncoder(named, weights, sha256)
