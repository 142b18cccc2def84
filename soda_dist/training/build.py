"""Build models, objectives and engines from a configuration; the only file where configuration and modules meet."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels
from soda_dist.data.storage.folder import locate
from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.schedules import alpha_bar
from soda_dist.errors import UserError
from soda_dist.models.aggregation import MeanAggregation, TransformerAggregation
from soda_dist.models.baselines import Palette, Unconditional
from soda_dist.models.batch_norm import share_groups
from soda_dist.models.decoder import Decoder
from soda_dist.models.denoiser import Conditioning, Denoiser
from soda_dist.models.encoder import Encoder
from soda_dist.models.method import Method, Precision
from soda_dist.models.pose_encoding import PoseGrid, PoseVector
from soda_dist.models.pose_masks import SeparatePoseMasks
from soda_dist.models.pretrained import FrozenEncoder, UnsuitableModelError, load_frozen
from soda_dist.models.soda import EncDec, Encoding, Soda
from soda_dist.training.collectives import ProcessGroupContext, set_collective_timeout, sum_over_neighbours
from soda_dist.training.engines.engine import Engine
from soda_dist.training.engines.skipping import SkippingAdamW
from soda_dist.training.engines.torch_engine import TorchEngine
from soda_dist.training.objective import Objective
from soda_dist.training.online_probe import OnlineProbe

Fill = Callable[[Method], None]
COLLECTIVE_TIMEOUT_S = 600.0


def build_model(config: RunConfig) -> Method:
    """Build a model on the CPU, seeded by `config.seed`; a frozen encoder is random until `load_frozen_weights`.

    `train.precision: auto` builds float32 here: `precision.with_precision` resolves it for a device.
    """
    precision: Precision = "bf16" if config.train.precision == "bf16" else "fp32"
    pose = config.pose
    masks = SeparatePoseMasks(pose.mask_rate) if pose.masks == "separate" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        match config.method:
            case "soda":
                return Soda(
                    encoder=_encoder(config),
                    aggregation=_aggregation(config),
                    denoiser=_denoiser(config, config.denoiser.conditioning, image=False),
                    process=_process(config),
                    precision=precision,
                    pose_masks=masks,
                )
            case "encdec":
                return EncDec(
                    encoder=_encoder(config),
                    aggregation=_aggregation(config),
                    decoder=_decoder(config),
                    precision=precision,
                    pose_masks=masks,
                )
            case "unconditional":
                denoiser = _denoiser(config, "none", image=False)
                return Unconditional(denoiser=denoiser, process=_process(config), precision=precision)
            case "palette":
                denoiser, size = _denoiser(config, "none", image=True), config.data.target_size
                return Palette(
                    size=size, denoiser=denoiser, process=_process(config), precision=precision, pose_masks=masks
                )


def build_encoder(config: RunConfig) -> nn.Module:
    """Build the encoder alone, on the CPU, with initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _encoder(config)


def build_objective(config: RunConfig, labels: ProbeLabels | None = None, fill: Fill | None = None) -> Objective:
    """Build the model with its objective, for an engine to train.

    Args:
        labels: for `train.online_probe`.
        fill: copies initial weights into the model; None = random ones.

    Raises:
        ValueError: labels without an online probe, or vice versa.
        UserError: a frozen encoder's weights are missing, or do not match the digest or the model.
    """
    on = config.train.online_probe
    if (labels is not None) != on:
        raise ValueError(f"labels: got {labels}; train.online_probe={on} needs {'labels' if on else 'none'}")
    model = build_model(config)
    if fill is not None:
        fill(model)
    load_frozen_weights(model, config)
    if isinstance(model, Encoding):
        model.norm_batch = config.norm_batch
    together = config.pose.mask_rate if config.pose.masks == "together" else 0.0  # else the model draws them
    return Objective(
        model=model,
        seed=config.seed,
        timesteps=config.diffusion.steps,
        source_noise=config.data.source_noise,
        mask_rates=(config.denoiser.layer_mask_rate, config.denoiser.guidance_mask_rate, together),
        online_probe=None if labels is None else _online_probe(config, labels),
    )


def _online_probe(config: RunConfig, labels: ProbeLabels) -> OnlineProbe:
    probe = config.evaluation.probe
    return OnlineProbe(
        width=config.encoder.latent_dim,
        classes=labels.classes,
        heads=labels.heads,
        seed=config.seed,
        lr=config.train.online_probe_lr,
        dropout=probe.dropout,
        label_smoothing=probe.label_smoothing,
        weight_std=probe.weight_std,
        bias=probe.bias,
    )


def load_frozen_weights(model: Method, config: RunConfig) -> None:
    """Read `encoder.weights` into a frozen encoder; do nothing for a trained one."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, FrozenEncoder):
        return
    assert config.encoder.weights is not None and config.encoder.weights_sha256 is not None
    folder, name = locate(config.encoder.weights)
    try:
        content = folder.read(name)
    except FileNotFoundError:
        got = config.encoder.weights
        raise UserError("encoder.weights", got, "an existing file", "download the weights to that path") from None
    load_frozen(encoder, content, config.encoder.weights_sha256)


def build_optimizer(config: RunConfig, objective: Objective) -> SkippingAdamW:
    """Create AdamW (table 12) with one parameter group; the loop sets its learning rate.

    Our reading: every parameter decays, as in optax's `adamw`, since the paper uses JAX.
    """
    o = config.optim
    return SkippingAdamW(
        objective.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
    )


def torch_engine(config: RunConfig, objective: Objective, *, rank: int = 0, world: int = 1) -> TorchEngine:
    """Create the PyTorch engine on the device of `objective`."""
    return TorchEngine(
        objective=objective,
        optimizer=build_optimizer(config, objective),
        clip_norm=config.optim.clip_norm,
        ema_decay=config.optim.ema_decay,
        accumulation=config.accumulation,
        rank=rank,
        world=world,
    )


def _process(config: RunConfig) -> GaussianProcess:
    d = config.diffusion
    return GaussianProcess(alpha_bar(d.schedule, d.steps), d.prediction)


def _encoder(config: RunConfig) -> nn.Module:
    e = config.encoder
    if e.arch == "pretrained":
        assert e.model is not None
        try:
            frozen = FrozenEncoder(model=e.model, image_size=config.data.source_size)
        except UnsuitableModelError as error:
            raise UserError("encoder.model", error.got, error.allowed, "name a timm model") from None
        if frozen.latent_dim != e.latent_dim:
            raise UserError("encoder.latent_dim", e.latent_dim, f"{frozen.latent_dim}, as {e.model} has", "set it so")
        return frozen
    return Encoder(
        arch=e.arch,
        width=e.width,
        stem=e.stem,
        norm=e.norm,
        patch=e.patch,
        image_size=config.data.source_size,
        latent_dim=e.latent_dim,
        lr_ratio=e.lr_ratio,
        drop_path=e.drop_path,
        dropout=e.dropout,
        pool=config.denoiser.conditioning != "grid_attention",
        pose=_grid(config) if "grid" in config.pose.conditioning else None,
    )


def _aggregation(config: RunConfig) -> nn.Module:
    a = config.aggregation
    if a.kind == "mean":
        return MeanAggregation()
    dim = config.encoder.latent_dim
    return TransformerAggregation(latent_dim=dim, depth=a.depth, heads=a.heads, multiplier=a.multiplier)


def _denoiser(config: RunConfig, conditioning: Conditioning, *, image: bool) -> Denoiser:
    d, grid = config.denoiser, "grid" in config.pose.conditioning
    return Denoiser(
        **_unet(config),
        conditioning=conditioning,
        position_dim=d.position_dim,
        time_dim=4 * d.base_channels if d.time_dim is None else d.time_dim,
        time_unit=1.0 if d.time_scale is None else 1 / (config.diffusion.steps * d.time_scale),
        image=image,
        grid=_grid(config) if grid else None,
        source_grid=_grid(config) if grid and image else None,
        vector=_vector(config),
    )


def _decoder(config: RunConfig) -> Decoder:
    return Decoder(**_unet(config), conditioning=config.denoiser.conditioning, grid=_grid(config))


def _unet(config: RunConfig) -> dict[str, Any]:
    d = config.denoiser
    return {
        "modulation": d.modulation,
        "latent_dim": config.encoder.latent_dim,
        "resolution": config.data.target_size,
        "base_channels": d.base_channels,
        "channel_multipliers": d.channel_multipliers,
        "blocks": d.blocks,
        "attention_resolutions": d.attention_resolutions,
        "head_dim": d.head_dim,
        "dropout": d.dropout,
        "up_path": d.up_path,
    }


def _grid(config: RunConfig) -> PoseGrid | None:
    """Create a network's pose grid, as wide as the denoiser's first layer; None without poses."""
    if config.data.pose == "none":
        return None
    p, d = config.pose, config.denoiser
    return PoseGrid(
        kind=config.data.pose,
        form=p.rays,
        coordinates=p.coordinates,
        radius=p.radius,
        extent=p.extent,
        dim=p.encoding_dim,
        scale=p.scale,
        channels=d.base_channels * d.channel_multipliers[0],
    )


def _vector(config: RunConfig) -> PoseVector | None:
    p = config.pose
    if config.data.pose == "none" or p.conditioning == "grid":
        return None
    relative = p.conditioning in ("relative", "grid_relative")
    return PoseVector(form="relative" if relative else "absolute", extent=p.extent, dim=p.encoding_dim, scale=p.scale)


def build_engine(
    config: RunConfig, device: torch.device, labels: ProbeLabels | None = None, fill: Fill | None = None
) -> Engine:
    """Build the configured engine in an initialised process group; `labels` and `fill` as in `build_objective`."""
    objective = build_objective(config, labels, fill).to(device)
    world = dist.get_world_size()
    if world > 1:
        objective.workers = ProcessGroupContext(device, None)
        if objective.online_probe is not None:
            objective.online_probe.workers = objective.workers
        sharers = (config.norm_batch or 1) // config.micro_batch
        if sharers > 1:
            share_groups(objective, sum_over_neighbours(sharers))
    if config.scale.engine == "deepspeed":
        from soda_dist.training.engines.deepspeed_engine import DeepSpeedEngine

        optimizer = build_optimizer(config, objective)
        engine: Engine = DeepSpeedEngine(objective=objective, optimizer=optimizer, config=config, device=device)
    else:
        engine = torch_engine(config, objective, rank=dist.get_rank(), world=world)
    set_collective_timeout(COLLECTIVE_TIMEOUT_S)
    return engine
