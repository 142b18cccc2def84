"""Sections of the configuration with all defaults; presets state differences.

Values are the paper's (table 12) unless a docstring says "our reading". Sizes are pixels, rates are probabilities,
steps are optimizer updates, and batches count view pairs.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from soda_dist.config.evaluation import Evaluation
from soda_dist.config.fields import (
    Count,
    CountOrZero,
    Fraction,
    Layers,
    Node,
    NotNegative,
    Positive,
    Rate,
    Sources,
    Uri,
    Width,
)
from soda_dist.config.problems import Problem, ProblemError


class Augmentation(Node):
    """Augmentation that draws two views from one image (section D.3, table 12)."""

    crop_flip_rate: Fraction = 0.95
    """Probability that a view is a random resized crop, flipped with probability one half."""
    crop_area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of the crop's width divided by its height."""
    flip: bool = True
    randaugment_rate: Fraction = 0.0
    """Probability of RandAugment after the crop; 0.65 in the paper where it is used."""
    randaugment_layers: Count = 2
    randaugment_magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 9.0
    randaugment_magnitude_std: NotNegative = 0.5
    randaugment_on: Literal["worker", "device"] = "worker"
    """Where to run it: in data workers, or in batches on the training device."""

    @model_validator(mode="after")
    def _ordered(self) -> "Augmentation":
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                got = f"{low}, {high}"
                raise ProblemError(Problem(name, got, "0 < low <= high", "give the smaller bound first"))
        return self


class Data(Node):
    """Inputs of the encoder and the denoiser."""

    source_size: Annotated[int, Field(ge=8, le=1024)] = 256
    """Side of the encoder's input."""
    target_size: Annotated[int, Field(ge=8, le=1024)] = 128
    """Side of the denoiser's output."""
    eval_resize: Annotated[float, Field(ge=1.0, le=2.0)] = 1.0
    """Resized short side over crop side at evaluation; 8/7 for ImageNet (section D.2, our reading)."""
    source_noise: NotNegative = 0.0
    """Standard deviation of the Gaussian noise on the normalised source view (table 10)."""
    train_split: str = "train"
    shuffle_groups: Count = 16
    """Row groups shuffled together: a batch draws evenly from this many."""
    views: Literal["augmented", "same", "object", "class"] = "augmented"
    """What views share (3.3), in this order: an image; also its augmentation (an auto-encoder); an object; a class."""
    sources: tuple[Sources, Sources] = (1, 1)
    """Minimum and maximum number of source views; training draws it uniformly."""
    augment: Literal["both", "source", "target", "none"] = "both"
    """Views that are augmented (figure 6); others are center-cropped."""
    augmentation: Augmentation = Augmentation()
    pose: Literal["none", "pixels", "cameras"] = "none"
    """Pose of a view (section 3.3): none, the coordinates of its pixels in the image, or its camera."""


class Encoder(Node):
    """The image encoder E (section 3.2, appendix C)."""

    arch: Literal["resnet18", "resnet50", "resnet50x2", "vit_small", "vit_base", "pretrained"] = "resnet50"
    """`pretrained`: a frozen encoder, as in unCLIP (section F.1), set by the three fields below."""
    model: str | None = None
    """timm name of the frozen encoder; it is never downloaded."""
    weights: Uri | None = None
    """File or URI of its weights: safetensors, or a PyTorch state dict, of which only tensors are read."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Required digest of the weights."""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """Multiplier of every channel count of `arch`; below 1 for small machines."""
    patch: Annotated[int, Field(ge=2, le=64)] = 16
    """Side of the patches of a ViT."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """`imagenet`: 7x7 stride 2 and max pooling; `small`: 3x3 stride 1, for images up to 64 px (our reading)."""
    norm: Literal["batch", "group"] = "batch"
    """Batch norm has the statistics of `train.norm_batch` view pairs, group norm those of an image alone."""
    latent_dim: Annotated[int, Field(ge=2, le=16384)] = 2048
    lr_ratio: Positive = 1.0
    """Encoder learning rate over denoiser learning rate, by learning-rate equalization; 2 for ImageNet."""
    drop_path: Rate = 0.1
    dropout: Rate = 0.1
    """Dropout on the latent (bottleneck dropout)."""


class Aggregation(Node):
    """Aggregation of the latents of several sources (section 3.3, tables 5, 12); a single latent is unchanged."""

    kind: Literal["mean", "transformer"] = "mean"
    depth: Layers = 2
    heads: Layers = 4
    multiplier: Layers = 4
    """Width of the hidden layers over the width of z."""


class Pose(Node):
    """Pose conditioning (section 3.3, G.3, table 8), used unless `data.pose` is `none`."""

    conditioning: Literal["grid", "absolute", "relative", "grid_absolute", "grid_relative"] = "grid"
    """`grid`: extra channels of the first layer; `absolute`, `relative`: a modulating vector; or both."""
    rays: Literal["concat", "normalized", "plane", "sphere"] = "sphere"
    coordinates: Literal["cartesian", "polar"] = "polar"
    radius: Positive = 1.0
    """Radius of the sphere that rays intersect, in the unit of the camera positions (our reading)."""
    extent: Positive = 4.0
    """Length that is scaled to 1 before encoding, in the same unit (our reading)."""
    encoding_dim: Annotated[int, Field(ge=24, le=65_536, multiple_of=2)] = 512
    """Width of the sinusoidal encoding."""
    scale: Positive = 1e-4
    """Divisor of the coordinates in the encoding (figure 10)."""
    mask_rate: Fraction = 0.0
    """Probability that the poses are masked, independently of z (table 10, masking)."""
    masks: Literal["together", "separate"] = "together"
    """One draw for the poses of sources and target (our reading), or one for each (G.3: "source or target's")."""


class Denoiser(Node):
    """The denoising UNet D (section 3.1, appendix C)."""

    conditioning: Literal["layer_modulation", "modulation", "broadcast", "cross_attention", "grid_attention"] = (
        "layer_modulation"
    )
    """How z reaches the layers, in this order: a section modulates each pair of layers; all of z modulates all layers;
    channels of the first layer (no modulation); attention to z's sections; to the encoder's grid (no bottleneck)."""
    modulation: Literal["two_stage", "no_scale", "sum", "concat"] = "two_stage"
    """Combination of t and z in modulation (tables 9, 11)."""
    base_channels: Annotated[int, Field(ge=8, le=1024)] = 64
    channel_multipliers: Annotated[tuple[Layers, ...], Field(min_length=1, max_length=10)] = (1, 1, 2, 3, 4)
    blocks: Layers = 2
    """Residual blocks per resolution on the way down."""
    up_path: Literal["adm", "mirrored"] = "adm"
    """`adm`: one more block per resolution, a skip for each (Dhariwal and Nichol 2021); `mirrored`: the way down
    reversed (our reading of releases before)."""
    attention_resolutions: Annotated[tuple[Count, ...], Field(max_length=10)] = (8, 16, 32)
    head_dim: Width = 64
    dropout: Rate = 0.1
    position_dim: Annotated[int, Field(ge=4, le=65_536, multiple_of=2)] = 512
    """Width of the sinusoidal timestep encoding."""
    time_dim: Width | None = None
    """Width of the timestep embedding; None = 4 x base_channels, as in Dhariwal and Nichol 2021."""
    time_scale: Positive | None = None
    """Divisor of t / T in the timestep encoding, as `pose.scale` of coordinates; None = t itself (our reading)."""
    layer_mask_rate: Fraction = 0.15
    """Probability that a section of z is zeroed, independently for each (layer masking, section 3.2.1)."""
    guidance_mask_rate: Fraction = 0.12
    """Probability that all of z is zeroed (classifier-free guidance)."""

    @property
    def sections(self) -> int:
        """Number of sections of z: one for each pair of layers (section 3.2.1), or 1."""
        if self.conditioning not in ("layer_modulation", "cross_attention"):
            return 1
        levels = len(self.channel_multipliers)
        return levels * self.blocks + levels - 1


class Diffusion(Node):
    """The forward process (sections 3.1 and 3.4)."""

    schedule: Literal["inverted", "cosine", "linear", "sigmoid"] = "inverted"
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    prediction: Literal["noise", "velocity"] = "noise"
    """Output of the denoiser, whose error is the loss: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho
    2022), which weighs high noise more, where z decides what is drawn (ours, for short runs)."""


class Sampling(Node):
    """The reverse process (appendix C, G.4)."""

    method: Literal["ddpm", "ddim"] = "ddpm"
    steps: Count = 100
    """Strided steps; the paper uses 75 to 250."""
    guidance: NotNegative = 2.0
    """w: 0 drops the condition, 1 is plain conditional sampling, 2 to 3 the paper's range."""
    guide: Literal["latent", "pose", "both"] = "latent"
    """Condition that the unconditional branch of guidance drops (table 10, masking)."""
    guided_sections: tuple[CountOrZero, ...] | None = None
    """Sections of z that this branch drops; None = all."""
    masked_sections: tuple[CountOrZero, ...] = ()
    """Sections of z that are always dropped, so that samples vary in them (section 4.3.1)."""
    sources: Sources = 1
    """Source views per sample."""
    stochastic: bool = False
    """Condition each step on a random source instead of the aggregation (table 5)."""
    variance: Literal["small", "large"] = "small"
    """Fixed variance of DDPM: that of the posterior (small) or beta (large)."""
    eta: Fraction = 0.0
    """Share of the DDPM noise in DDIM."""


class Optim(Node):
    """Adam with decoupled weight decay (table 12)."""

    lr: Positive = 2e-4
    """Peak learning rate for the whole global batch; never rescaled by the number of workers."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.05
    clip_norm: Positive = 0.5
    warmup_steps: CountOrZero = 5000
    """Linear from 0; a run that is not longer begins with a tenth of its steps."""
    decay: Literal["none", "cosine"] = "none"
    """`cosine`: from the peak after warm-up to `final_lr_fraction` of it at the last step."""
    final_lr_fraction: Fraction = 0.25
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999


Measured = Literal["none", "loss", "probe_accuracy", "retrieval", "effective_rank"]
"""Metrics of held-out images."""


class Stop(Node):
    """An end before `train.steps`, at convergence (section D.2 trains "until convergence"; our reading)."""

    metric: Measured = "none"
    """Of the EMA weights on held-out images: the training loss; accuracy of the online probe; or, without labels, top-1
    retrieval of an image's other view, or the effective rank of the latents. `none` = no early end."""
    patience: Count = 5
    """Evaluations without improvement after which the run stops."""
    min_delta: NotNegative = 0.0
    """Smallest difference that counts as an improvement."""
    every_steps: Count = 1000
    """Steps between evaluations."""
    split: str = "val"
    """Held-out split, also of `validation_every_steps` and `keep_best`; not the training split, nor, for an early end
    or `keep_best`, the one that evaluation tests on."""
    images: Annotated[int, Field(ge=16, le=20_000)] = 2000
    """First images of the split."""


class Guard(Node):
    """Limits of what goes wrong: a step whose loss or gradient is not finite is skipped, whatever the engine (ours)."""

    skipped_steps: CountOrZero = 10
    """Skipped steps allowed within `window_steps`. With one more, the run goes back to the last checkpoint before them
    and continues with other noise, masks and dropout; the order of the samples stays."""
    window_steps: Count = 200
    """Counted by whole lines of `metrics.jsonl`, see `log_every_steps`."""
    rollbacks: CountOrZero = 3
    """Times that a start of the run may go back; then it ends with a diagnosis."""


class Train(Node):
    """Length, batch and bookkeeping of a run."""

    steps: Count = 100_000
    global_batch: Count = 1024
    """View pairs per update, over all workers."""
    micro_batch: Count | None = None
    """View pairs per forward pass of a worker; None = no gradient accumulation."""
    norm_batch: Count | None = None
    """View pairs of a group of batch norm: 0..n-1, n..2n-1, ... of the global batch share statistics, whatever the
    workers and `micro_batch`; None, or more than the global batch = all of it. Unused without batch norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: autocast; weights, optimizer state and EMA stay fp32. `auto`: bf16 where the first start's devices have
    units for it, else fp32; the run keeps it."""
    log_every_steps: Count = 50
    """Steps between lines of `metrics.jsonl`."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics and pictures go too; `tensorboard` = event files in the run's folder."""
    validation_every_steps: Count | None = None
    """Steps between measurements on the held-out images of `stop.split`: loss, online probe, a picture; None = none."""
    checkpoint_every_steps: Count = 1000
    keep_checkpoints: Count = 2
    """Latest complete checkpoints to keep; older ones are removed, but for those of the next two fields."""
    keep_every_steps: Count | None = None
    """Keep the checkpoints of steps that this divides too; None = none."""
    keep_best: Measured = "none"
    """Keep the best checkpoint too, by this metric of `stop`, measured at each checkpoint."""
    max_unreadable: Fraction = 0.05
    """Maximum share of rows with unreadable images; each is listed and replaced by another row of its group."""
    online_probe: bool = False
    """Train a linear probe alongside (E.1), with dropout, label smoothing and initial values of `evaluation.probe`."""
    online_probe_label: str | None = None
    """Column to predict, or `attributes` for all of them; None = the main label of the data set."""
    online_probe_lr: Positive = 1e-3
    """Its constant learning rate (our reading)."""
    stop: Stop = Stop()
    guard: Guard = Guard()

    @property
    def holds_out(self) -> bool:
        """Whether anything is measured on held-out images."""
        return self.validation_every_steps is not None or {self.stop.metric, self.keep_best} != {"none"}


class Scale(Node):
    """Resources of a run."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    data_cpus_per_worker: Count = 1
    """Concurrent Ray Data tasks that decode and augment for one worker, one CPU each."""
    data_memory_mb: Annotated[int, Field(ge=64)] = 512
    """Object-store memory limit of one worker's pipeline, which the cluster must have."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts after lost workers; -1 = no limit (spot machines). A machine that is known to go is none."""
    max_wait_s: Positive | None = 600.0
    """Longest wait for machines, at the start and after a loss; null = no limit (spot machines)."""
    hang_timeout_s: Positive = 600.0
    """Longest time without a finished step; then every worker's stacks are shown, and the workers start again."""

    @property
    def wait_s(self) -> float:
        """`max_wait_s` as a number of seconds."""
        return 1e8 if self.max_wait_s is None else self.max_wait_s


class Sections(Node):
    """All sections and top-level fields, each valid by itself; `RunConfig` checks their combination."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    method: Literal["soda", "encdec", "unconditional", "palette"] = "soda"
    """SODA and its ablations, or a baseline with the same networks (section F.1)."""
    data: Data = Data()
    encoder: Encoder = Encoder()
    aggregation: Aggregation = Aggregation()
    pose: Pose = Pose()
    denoiser: Denoiser = Denoiser()
    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()
    optim: Optim = Optim()
    train: Train = Train()
    scale: Scale = Scale()
    evaluation: Evaluation = Evaluation()

    @property
    def micro_batch(self) -> int:
        return self.train.micro_batch or self.train.global_batch // self.scale.workers

    @property
    def norm_batch(self) -> int | None:
        """View pairs of a group of batch norm; None = no batch norm is trained."""
        resnet = self.method in ("soda", "encdec") and self.encoder.arch.startswith("resnet")
        if not resnet or self.encoder.norm != "batch":
            return None
        return min(self.train.norm_batch or self.train.global_batch, self.train.global_batch)

    @property
    def accumulation(self) -> int:
        """Micro-batches per update of a worker."""
        return self.train.global_batch // (self.micro_batch * self.scale.workers)
