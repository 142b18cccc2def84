"""A trained model in Python: encode, sample, reconstruct, and the latent tools, each one call.

Pre-processing, sampling and noise are those of evaluation; without poses the same image has the same latent there and
here. Noise is a function of the seed alone: a latent gives the same image whatever stands beside it in a batch, up to
the last rounding, and two latents drawn with one seed differ by nothing but their content.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.views.pair_views import center_poses_of
from soda_dist.data.views.poses import Cameras
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import encode_views
from soda_dist.evaluation.images.decode_latents import CHUNK, LatentJob, decode_all, section_of
from soda_dist.evaluation.images.sampling import SampleInputs, SampleJob, denoise, sample_all
from soda_dist.evaluation.images.scores import Images
from soda_dist.evaluation.model_sources import ModelSource
from soda_dist.evaluation.worker import Models
from soda_dist.inference.pictures import Pictures, batches, checked_cameras, listed, pixels_of
from soda_dist.models.baselines import Unconditional
from soda_dist.models.condition import Condition
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.latents import Interpolation, interpolate, mix_sections
from soda_dist.models.method import Method
from soda_dist.models.pixels import to_uint8
from soda_dist.models.soda import EncDec, Encoding, Soda
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent

Latents: TypeAlias = Tensor | NDArray[Any]
"""Latents of `Model.encode`: float [n, D], or [D] for one."""
LARGEST_SEED = 2**31 - 1


class Model:
    """A trained model, or an encoder alone; made by `load`.

    Images come back as uint8 [n, r, r, 3], r = `config.data.target_size`. What the model lacks raises `UserError`.

    Attributes:
        config: the run's configuration; `sampling` has the defaults of what draws, `evaluation.batch` the batch size.
        device: where the networks are.
        network: the network itself, in eval mode.
    """

    def __init__(self, source: ModelSource, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.network: Method | EncoderAlone = source.load().to(device).eval().requires_grad_(False)
        self._models = Models(self.network, config, {}, device, source.fresh)

    def __repr__(self) -> str:
        what = self.config.method if isinstance(self.network, Method) else "an encoder"
        return f"<soda_dist model: {what} on {self.device}>"

    @property
    def latent_dim(self) -> int:
        """D, the size of z."""
        return int(self._encoding("latent_dim").encoder.latent_dim)  # type: ignore[arg-type]

    def encode(self, images: Pictures, cameras: Cameras | None = None) -> Tensor:
        """Encode images to z, float32 [n, latent_dim] on the CPU; without a bottleneck the mean over the grid.

        Args:
            images: one or many, of any size (`pictures.Pictures`); each is resized and center-cropped as in evaluation.
            cameras: of the images, for models that take them: [n, 4, 4] and [n, 3, 3], in pixels of each image.

        Raises:
            UserError: no encoder, an image that cannot be read, or latents that are not finite.
        """
        network = self._encoding("encode")
        seen = batches(images, for_encoder(self.config), cameras, target=False)
        z = torch.cat([encode_views(network, some, self.device) for some in seen])
        if not bool(z.isfinite().all()):
            raise UserError("encode", "latents that are not finite", "a run that did not diverge", "use another step")
        return z

    def sample(
        self,
        z: Latents | None = None,
        *,
        count: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Images:
        """Draw an image from each latent (appendix C); without `z`, images without any source.

        Args:
            z: as from `encode`. With `data.pose=pixels` the whole frame is drawn.
            count: of images without a source, each from noise of its own; None = 1.
            guidance: scale w (section 3.2.1); None = the run's `sampling.guidance`.
            steps: of the reverse process; None = the run's `sampling.steps`.
            seed: of the noise, which all images of `z` share.

        Returns:
            uint8 [n, r, r, 3].

        Raises:
            UserError: a model that does not draw from z, or an argument out of range.
        """
        if z is None:
            return self._without_source(1 if count is None else count, guidance, steps, seed)
        if count is not None:
            raise UserError("count", f"{count} with z", "None, since each latent gives one image", "leave it out")
        latents = self._latents("sample", z)
        models = self._drawing("sample", guidance, steps, seed)
        keys = np.zeros(len(latents), np.int64)
        return _decoded(models, LatentJob(keys, latents.numpy(), self._frames(len(latents)), noise=seed))

    def reconstruct(
        self,
        images: Pictures,
        cameras: Cameras | None = None,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Images:
        """Draw each image again with itself as the source: uint8 [n, r, r, 3]; arguments as `encode` and `sample`."""
        models = self._drawing("reconstruct", guidance, steps, seed)
        if isinstance(self.network, Unconditional):
            raise self._lacking("reconstruct", "a method with a source: soda, encdec or palette")
        drawn = []
        for seen in batches(images, self.config, cameras, target=True):
            source_pose = None if seen.pose is None else seen.pose[:, None]
            keys = np.zeros(len(seen.source), np.int64)
            inputs = SampleInputs(keys, seen.source[:, None], source_pose, seen.target, seen.pose)
            drawn.append(_drawn(models, inputs, seed))
        return np.concatenate(drawn)

    def interpolate(
        self,
        a: Latents,
        b: Latents,
        count: int = 8,
        *,
        method: Interpolation = "linear",
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Images:
        """Draw `count` images between two latents (section E.3): uint8 [count, r, r, 3], the ends are a's and b's.

        Args:
            a, b: one latent each.
            count: at least 2.
            method: `linear` (the paper's) or `spherical`; other arguments as `sample`.
        """
        first, last = (self._latents("interpolate", z) for z in (a, b))
        if len(first) != 1 or len(last) != 1:
            raise UserError(
                "interpolate", f"{len(first)} and {len(last)} latents", "one each", "index them: z[0], z[1]"
            )
        if count < 2:
            raise UserError("count", count, ">= 2", "both ends are drawn")
        if method not in ("linear", "spherical"):
            raise UserError("method", method, "linear, spherical", "choose one of them")
        between = interpolate(first[0], last[0], torch.linspace(0, 1, count), method=method)
        return self.sample(between, guidance=guidance, steps=steps, seed=seed)

    def mix(
        self,
        a: Latents,
        b: Latents,
        sections: Sequence[int],
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Images:
        """Draw from a with some sections of z taken from b (style mixing, section 3.2.1): uint8 [n, r, r, 3].

        Args:
            a, b: as many latents each.
            sections: counted from 0, the outermost layers'; other arguments as `sample`.
        """
        first, other = (self._latents("mix", z) for z in (a, b))
        count = self._models.method.sections
        if count == 1:
            raise self._lacking("mix", "a model whose z has sections (denoiser.conditioning=layer_modulation)")
        if first.shape != other.shape:
            raise UserError("mix", f"{len(first)} and {len(other)} latents", "as many each", "repeat one of them")
        wrong = [section for section in sections if section not in range(count)]
        if wrong:
            raise UserError("sections", wrong[0], f"0..{count - 1}", "number sections from 0, the outermost")
        choice = torch.tensor([int(section in sections) for section in range(count)])
        mixed = mix_sections(torch.stack([first, other]), choice, section_of(self._models, None))
        return self.sample(mixed, guidance=guidance, steps=steps, seed=seed)

    def views(
        self,
        images: Pictures,
        cameras: Cameras,
        *,
        source_cameras: Cameras | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Images:
        """Draw an object from other cameras (section 4.2.2): uint8 [m, r, r, 3].

        Args:
            images: one or several views of one object.
            cameras: to draw from, [m, 4, 4] and [m, 3, 3], intrinsics in pixels of an image of the first one's size.
            source_cameras: of `images`; other arguments as `sample`.
        """
        if self.config.data.pose != "cameras" or not isinstance(self.network, Method):
            raise self._lacking("views", "a model of data.pose=cameras")
        models = self._drawing("views", guidance, steps, seed)
        if source_cameras is None:
            raise UserError("source_cameras", "nothing", "the camera of each image", "pass source_cameras=Cameras(...)")
        wanted = checked_cameras(cameras, None, "cameras")
        found = listed(images)
        seen = list(batches(found, self.config, source_cameras, target=False))
        source = np.concatenate([some.source for some in seen])
        poses = np.concatenate([some.pose for some in seen if some.pose is not None])
        targets, data = len(wanted.to_world), self.config.data
        sizes = np.tile(pixels_of(found[0]).shape[:2], (targets, 1))
        pose = center_poses_of(sizes, wanted, size=data.source_size, resize=data.eval_resize, pose="cameras")
        inputs = SampleInputs(
            keys=np.zeros(targets, np.int64),
            source=np.broadcast_to(source, (targets, *source.shape)),
            source_pose=np.broadcast_to(poses, (targets, *poses.shape)),
            target=np.zeros((targets, 0, 0, 3), np.uint8),
            pose=pose,
        )
        return _drawn(models, inputs, seed)

    def _encoding(self, call: str) -> Encoding | EncoderAlone:
        if not isinstance(self.network, Encoding | EncoderAlone):
            raise self._lacking(call, "a model with an encoder: soda, encdec or an encoder alone")
        return self.network

    def _drawing(self, call: str, guidance: float | None, steps: int | None, seed: int) -> Models:
        """The networks with the sampling settings of one call."""
        if not isinstance(self.network, Method):
            raise self._lacking(call, "a whole model: a run or an exported folder")
        if isinstance(self.network, EncDec) and (guidance, steps) != (None, None):
            raise UserError(
                "guidance, steps",
                f"{guidance}, {steps} for method encdec",
                "None: it decodes at once",
                "leave them out",
            )
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError("seed", seed, f"0..{LARGEST_SEED}", "choose another")
        given = {"sampling.guidance": guidance, "sampling.steps": steps}
        fields = {name: value for name, value in given.items() if value is not None}
        return replace(self._models, config=with_fields(self.config, fields))

    def _latents(self, call: str, z: Latents) -> Tensor:
        """Latents to draw from, float32 [n, D] on the CPU."""
        if not isinstance(self.network, Soda | EncDec):
            raise self._lacking(call, "a model that draws from z: soda or encdec")
        if self.config.denoiser.conditioning == "grid_attention":
            raise self._lacking(call, "a model whose z is one vector (not denoiser.conditioning=grid_attention)")
        found = torch.as_tensor(z).detach().cpu()
        found = found[None] if found.ndim == 1 else found
        if not found.is_floating_point() or found.ndim != 2 or found.shape[1] != self.latent_dim or not len(found):
            got = f"{found.dtype} {list(found.shape)}"
            raise UserError("z", got, f"float [n, {self.latent_dim}] or [{self.latent_dim}]", "encode images first")
        if not bool(found.isfinite().all()):
            raise UserError("z", "values that are not finite", "finite latents", "encode images first")
        return found.float()

    def _frames(self, count: int) -> NDArray[np.float32] | None:
        """Poses to draw latents in: the whole image."""
        match self.config.data.pose:
            case "none":
                return None
            case "pixels":
                return np.tile(np.array([-1, -1, 1, 1], np.float32), (count, 1))
            case "cameras":
                raise self._lacking("sample", "a model without cameras; of one with them, call views")

    def _without_source(self, count: int, guidance: float | None, steps: int | None, seed: int) -> Images:
        """Draw images of no source, each with the noise of its number."""
        if guidance is not None:
            raise UserError("guidance", f"{guidance} without z", "None, since there is no condition", "leave it out")
        models = self._drawing("sample", None, steps, seed)
        if count < 1:
            raise UserError("count", count, ">= 1", "choose a number of images")
        keys = np.arange(count)
        if isinstance(self.network, Unconditional):
            some = [keys[at : at + CHUNK] for at in range(0, count, CHUNK)]
            return np.concatenate([_unconditioned(models, each, seed) for each in some])
        if not isinstance(self.network, Soda) or self.config.denoiser.conditioning == "grid_attention":
            raise self._lacking("sample without z", "soda with a bottleneck, or unconditional")
        models = replace(models, config=with_fields(models.config, {"sampling.guidance": 0.0}))
        nothing = np.zeros((count, self.latent_dim), np.float32)
        return _decoded(models, LatentJob(keys, nothing, self._frames(count), noise=seed))

    def _lacking(self, call: str, allowed: str) -> UserError:
        """The error of a call for which the model lacks something."""
        c = self.config
        got = f"method {c.method}, data.pose={c.data.pose}, denoiser.conditioning={c.denoiser.conditioning}"
        got = got if isinstance(self.network, Method) else "an encoder alone"
        return UserError(call, got, allowed, "load another model")


def for_encoder(config: RunConfig) -> RunConfig:
    """The same configuration without cameras where the encoder has no pose grid, so that it needs none."""
    if config.data.pose != "cameras" or "grid" in config.pose.conditioning:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"pose": "none"})})


def _decoded(models: Models, job: LatentJob) -> Images:
    (found,) = decode_all(LocalPool(setup=Held(models)), [job], silent, "samples")
    return found.images


def _drawn(models: Models, inputs: SampleInputs, seed: int) -> Images:
    guidance = 1.0 if isinstance(models.model, EncDec) else models.config.sampling.guidance
    (found,) = sample_all(LocalPool(setup=Held(models)), [SampleJob(inputs, guidance, seed, 0)], silent)
    return found.images


def _unconditioned(models: Models, keys: NDArray[np.int64], seed: int) -> Images:
    x = torch.zeros(0)
    for _, step in denoise(models, [Condition()], Condition(), guidance=1.0, keys=keys, noise=seed):
        x = step.x
    return to_uint8(x).cpu().numpy()
