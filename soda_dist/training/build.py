"""From a configuration to models, objectives and engines: the only place where configuration and modules meet."""

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
from soda_dist.models.decoder import Decoder
from soda_dist.models.denoiser import Conditioning, Denoiser
from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import synchronize_norms
from soda_dist.models.method import Method
from soda_dist.models.pose_encoding import PoseGrid, PoseVector
from soda_dist.models.pretrained import FrozenEncoder, UnsuitableModelError, load_frozen
from soda_dist.models.soda import EncDec, Soda
from soda_dist.training.collectives import ProcessGroupContext, set_collective_timeout, sum_over_workers
from soda_dist.training.engines.engine import Engine
from soda_dist.training.engines.torch_engine import TorchEngine
from soda_dist.training.objective import Objective
from soda_dist.training.online_probe import OnlineProbe


def build_model(config: RunConfig) -> Method:
    """A freshly initialised model on the CPU; the weights are a function of `config` (its seed included) alone.

    A frozen encoder has random weights until `load_frozen_weights`.
    """
    precision = config.train.precision
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
                )
            case "encdec":
                return EncDec(
                    encoder=_encoder(config),
                    aggregation=_aggregation(config),
                    decoder=_decoder(config),
                    precision=precision,
                )
            case "unconditional":
                denoiser = _denoiser(config, "none", image=False)
                return Unconditional(denoiser=denoiser, process=_process(config), precision=precision)
            case "palette":
                denoiser, size = _denoiser(config, "none", image=True), config.data.target_size
                return Palette(size=size, denoiser=denoiser, process=_process(config), precision=precision)


def build_encoder(config: RunConfig) -> nn.Module:
    """The freshly initialised encoder alone, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _encoder(config)


def build_objective(config: RunConfig, labels: ProbeLabels | None = None) -> Objective:
    """The model with its training objective: what an engine trains; `labels` are those of `train.online_probe`.

    Raises:
        ValueError: labels without an online probe, or the other way round.
        UserError: a frozen encoder's weights are missing, or not those of the digest or the model.
    """
    if (labels is not None) != config.train.online_probe:
        raise ValueError(f"labels: got {labels}; allowed: what train.online_probe={config.train.online_probe} needs")
    model = build_model(config)
    load_frozen_weights(model, config)
    return Objective(
        model=model,
        seed=config.seed,
        timesteps=config.diffusion.steps,
        source_noise=config.data.source_noise,
        mask_rates=(config.denoiser.layer_mask_rate, config.denoiser.guidance_mask_rate, config.pose.mask_rate),
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
    """Reads `encoder.weights` into a frozen encoder; nothing where the encoder is trained."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, FrozenEncoder):
        return
    assert config.encoder.weights is not None and config.encoder.weights_sha256 is not None
    folder, name = locate(config.encoder.weights)
    try:
        content = folder.read(name)
    except FileNotFoundError:
        raise UserError(
            "encoder.weights", config.encoder.weights, "an existing file", "download the weights to that path"
        ) from None
    load_frozen(encoder, content, config.encoder.weights_sha256)


def build_optimizer(config: RunConfig, objective: Objective) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (table 12) in one group.

    Our reading: every parameter decays, as in optax's `adamw`, the paper being written in JAX. The learning rate is
    set by the loop at each step.
    """
    o = config.optim
    return torch.optim.AdamW(
        objective.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, foreach=True
    )


def torch_engine(config: RunConfig, objective: Objective, *, rank: int = 0, world: int = 1) -> TorchEngine:
    """The PyTorch engine for one of `world` workers, on the device where `objective` is."""
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
    return GaussianProcess(alpha_bar(config.diffusion.schedule, config.diffusion.steps))


def _encoder(config: RunConfig) -> nn.Module:
    e = config.encoder
    if e.arch == "pretrained":
        assert e.model is not None
        try:
            frozen = FrozenEncoder(model=e.model, image_size=config.data.source_size)
        except UnsuitableModelError as error:
            raise UserError("encoder.model", error.got, error.allowed, "name a model of timm") from None
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
    return TransformerAggregation(
        latent_dim=config.encoder.latent_dim, depth=a.depth, heads=a.heads, multiplier=a.multiplier
    )


def _denoiser(config: RunConfig, conditioning: Conditioning, *, image: bool) -> Denoiser:
    grid = "grid" in config.pose.conditioning
    return Denoiser(
        **_unet(config),
        conditioning=conditioning,
        position_dim=config.denoiser.position_dim,
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
    }


def _grid(config: RunConfig) -> PoseGrid | None:
    """A pose grid of its own for each network, as wide as the denoiser's first layer; none without poses."""
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


COLLECTIVE_TIMEOUT_S = 600.0


def build_engine(config: RunConfig, device: torch.device, labels: ProbeLabels | None = None) -> Engine:
    """The configured engine in an initialised process group; `labels` are those of an online probe."""
    objective = build_objective(config, labels).to(device)
    world = dist.get_world_size()
    if world > 1:
        synchronize_norms(objective, sum_over_workers)
        if objective.online_probe is not None:
            objective.online_probe.workers = ProcessGroupContext(device, None)
    if config.scale.engine == "deepspeed":
        from soda_dist.training.engines.deepspeed_engine import DeepSpeedEngine

        optimizer = build_optimizer(config, objective)
        engine: Engine = DeepSpeedEngine(objective=objective, optimizer=optimizer, config=config, device=device)
    else:
        engine = torch_engine(config, objective, rank=dist.get_rank(), world=world)
    set_collective_timeout(COLLECTIVE_TIMEOUT_S)
    return engine
