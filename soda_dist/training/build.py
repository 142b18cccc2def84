"""From a configuration to modules: the only place where the two meet."""

import torch

from soda_dist.config.schema import RunConfig
from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.schedules import alpha_bar
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.encoder import Encoder
from soda_dist.models.soda import Soda
from soda_dist.training.objective import Objective


def build_soda(config: RunConfig) -> Soda:
    """A freshly initialised model on the CPU; the weights are a function of `config` (its seed included) alone."""
    e, d = config.encoder, config.denoiser
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = Encoder(
            arch=e.arch,
            width=e.width,
            stem=e.stem,
            norm=e.norm,
            latent_dim=e.latent_dim,
            lr_ratio=e.lr_ratio,
            drop_path=e.drop_path,
            dropout=e.dropout,
        )
        denoiser = Denoiser(
            latent_dim=e.latent_dim,
            resolution=config.data.target_size,
            base_channels=d.base_channels,
            channel_multipliers=d.channel_multipliers,
            blocks=d.blocks,
            attention_resolutions=d.attention_resolutions,
            head_dim=d.head_dim,
            dropout=d.dropout,
            position_dim=d.position_dim,
        )
    process = GaussianProcess(alpha_bar(config.diffusion.schedule, config.diffusion.steps))
    return Soda(encoder=encoder, denoiser=denoiser, process=process, precision=config.train.precision)


def build_objective(config: RunConfig) -> Objective:
    """The model with its training objective: what an engine trains."""
    return Objective(
        soda=build_soda(config),
        seed=config.seed,
        source_noise=config.data.source_noise,
        layer_mask_rate=config.denoiser.layer_mask_rate,
        guidance_mask_rate=config.denoiser.guidance_mask_rate,
    )


def build_optimizer(config: RunConfig, objective: Objective) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (table 12) in one group.

    Our reading: every parameter decays, as in optax's `adamw`, the paper being written in JAX. The learning rate is
    set by the loop at each step.
    """
    o = config.optim
    return torch.optim.AdamW(
        objective.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, foreach=True
    )
