"""The configuration tree. Each default stands here and nowhere else; presets state differences from it.

Values are the paper's (table 12) unless a docstring says "our reading". Sizes are pixels, rates are probabilities,
steps are optimizer updates, and batches count view pairs.
"""

from math import isqrt
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]

ENCODER_STRIDE = 32


def _divisors(number: int) -> str:
    """All divisors of `number`, as an error shows them; quick for numbers of any size that a user may type."""
    low = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return ", ".join(str(n) for n in sorted({*low, *(number // n for n in low)}))


class Node(BaseModel):
    """A strict, frozen part of the tree: unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Augmentation(Node):
    """How the two views are drawn from one image (section D.3, table 12)."""

    crop_flip_rate: Fraction = 0.95
    """Probability that a view is a random resized crop, flipped with probability one half."""
    crop_area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of the crop's width divided by its height."""
    flip: bool = True
    randaugment_rate: Fraction = 0.0
    """Probability that RandAugment follows the crop; 0.65 in the paper where it is used."""
    randaugment_layers: Count = 2
    randaugment_magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 9.0
    randaugment_magnitude_std: NotNegative = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> "Augmentation":
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}|{low}, {high}|0 < low <= high|give the smaller bound first")
        return self


class Data(Node):
    """What the encoder and the denoiser see."""

    source_size: Annotated[int, Field(ge=8, le=1024)] = 256
    """Side of the encoder's input."""
    target_size: Annotated[int, Field(ge=8, le=1024)] = 128
    """Side of the denoiser's output."""
    eval_resize: Annotated[float, Field(ge=1.0, le=2.0)] = 1.0
    """Short side over crop before the centre crop at evaluation; 8/7 for ImageNet (section D.2, our reading)."""
    source_noise: NotNegative = 0.0
    """Standard deviation of the Gaussian noise on the normalised source view (table 10)."""
    train_split: str = "train"
    shuffle_groups: Count = 16
    """Row groups whose rows are mixed at a time: a batch draws evenly from this many."""
    augmentation: Augmentation = Augmentation()


class Encoder(Node):
    """The image encoder E (section 3.2, appendix C)."""

    arch: Literal["resnet18", "resnet50", "resnet50x2"] = "resnet50"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """Multiplier of every channel count of `arch`; below 1 for small machines."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """`imagenet`: 7x7 stride 2 and max pooling; `small`: 3x3 stride 1, for images up to 64 px (our reading)."""
    norm: Literal["batch", "group"] = "batch"
    """Batch norm is synchronised over the workers; only group norm is independent of how a batch is split."""
    latent_dim: Annotated[int, Field(ge=2, le=16384)] = 2048
    lr_ratio: Positive = 1.0
    """Encoder learning rate over denoiser learning rate, by learning-rate equalization; 2 for ImageNet."""
    drop_path: Rate = 0.1
    dropout: Rate = 0.1
    """Dropout on the latent (bottleneck dropout)."""


class Denoiser(Node):
    """The denoising UNet D (section 3.1, appendix C)."""

    base_channels: Annotated[int, Field(ge=8, le=1024)] = 64
    channel_multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 1, 2, 3, 4)
    blocks: Count = 2
    """Residual blocks per resolution."""
    attention_resolutions: tuple[Count, ...] = (8, 16, 32)
    head_dim: Count = 64
    dropout: Rate = 0.1
    position_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 512
    """Width of the sinusoidal timestep encoding."""
    layer_mask_rate: Fraction = 0.15
    """Probability that a section of z is zeroed, each section by itself (layer masking, section 3.2.1)."""
    guidance_mask_rate: Fraction = 0.12
    """Probability that the whole of z is zeroed (classifier-free guidance)."""

    @property
    def sections(self) -> int:
        """Sections of z: one for each pair of modulated layers (FORMULAS, layer modulation)."""
        levels = len(self.channel_multipliers)
        return levels * self.blocks + levels - 1


class Diffusion(Node):
    """The forward process (sections 3.1 and 3.4)."""

    schedule: Literal["inverted", "cosine", "linear", "sigmoid"] = "inverted"
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000


class Sampling(Node):
    """The reverse process (appendix C, G.4)."""

    method: Literal["ddpm", "ddim"] = "ddpm"
    steps: Count = 100
    """Strided steps; the paper uses 75 to 250."""
    guidance: NotNegative = 2.0
    """w: 0 drops the latent, 1 is plain conditional sampling, 2 to 3 the paper's range."""
    variance: Literal["small", "large"] = "small"
    """DDPM's fixed variance: the posterior's (small) or beta (large)."""
    eta: Fraction = 0.0
    """DDIM's share of the DDPM noise."""


class Optim(Node):
    """Adam with decoupled weight decay (table 12)."""

    lr: Positive = 2e-4
    """Peak learning rate at the global batch as given; never rescaled by the number of workers."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.05
    clip_norm: Positive = 0.5
    warmup_steps: CountOrZero = 5000
    decay: Literal["none", "cosine"] = "none"
    """`cosine`: from the peak after warm-up to `final_lr_fraction` of it at the last step."""
    final_lr_fraction: Fraction = 0.25
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999


class Train(Node):
    """Length, batch and bookkeeping of a run."""

    steps: Count = 100_000
    global_batch: Count = 1024
    """View pairs an update sees, over all workers."""
    micro_batch: Count | None = None
    """View pairs a worker takes through the network at a time; none: its whole share of the global batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the networks compute under autocast; weights, optimizer state and EMA stay fp32."""
    log_every_steps: Count = 50
    checkpoint_every_steps: Count = 1000
    keep_checkpoints: Count = 2
    """Complete checkpoints kept; older ones are removed."""


class Scale(Node):
    """The machines that a run asks for."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    data_cpus_per_worker: Count = 1
    """Ray Data tasks that decode and augment for one worker at a time, a CPU each."""
    data_memory_mb: Annotated[int, Field(ge=64)] = 512
    """Object-store memory that one worker's pipeline may hold."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Times that a lost worker group is started again; -1: without limit (spot machines)."""
    start_timeout_s: Positive = 600.0
    """Longest wait for the workers' resources, autoscaling included."""


class Probe(Node):
    """The linear probe (section E.1, table 12)."""

    epochs: Count = 20
    batch: Count = 256
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """All are trained at once; the best on held-out training rows is reported."""
    dropout: Rate = 0.1
    label_smoothing: Rate = 0.0
    """0.1 for ImageNet."""
    weight_std: Positive = 0.02
    bias: float = 0.0
    """Initial bias; -10 for ImageNet."""


class Knn(Node):
    """Weighted nearest neighbours by cosine similarity."""

    k: Count = 20
    temperature: Positive = 0.07


class Evaluation(Node):
    """What is measured on a trained run."""

    train_split: str = "train"
    test_split: str = "test"
    max_train_images: Count | None = None
    """First images of the split, in the order of keys; none: all."""
    max_test_images: Count | None = None
    label: str | None = None
    """Column to predict; none: the data set's main label."""
    batch: Count = 128
    actors: Count = 1
    images: Count = 8
    """Images in each sample and reconstruction grid."""
    probe: Probe = Probe()
    knn: Knn = Knn()


class RunConfig(Node):
    """A whole run. Section names are the fields; `a.b=value` on the command line overrides one leaf."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    encoder: Encoder = Encoder()
    denoiser: Denoiser = Denoiser()
    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()
    optim: Optim = Optim()
    train: Train = Train()
    scale: Scale = Scale()
    evaluation: Evaluation = Evaluation()

    @property
    def micro_batch(self) -> int:
        """View pairs that one worker takes through the network at a time."""
        return self.train.micro_batch or self.train.global_batch // self.scale.workers

    @property
    def accumulation(self) -> int:
        """Micro-batches of one worker in one update."""
        return self.train.global_batch // (self.micro_batch * self.scale.workers)

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        for check in (
            self._check_levels,
            self._check_attention,
            self._check_latent,
            self._check_batch,
            self._check_steps,
        ):
            problem = check()
            if problem:
                raise ValueError("|".join(problem))
        return self

    def _check_levels(self) -> tuple[str, ...] | None:
        levels = len(self.denoiser.channel_multipliers)
        size, factor = self.data.target_size, 2 ** (levels - 1)
        if size % factor:
            got = f"{size} with {levels} levels in denoiser.channel_multipliers"
            return "data.target_size", got, f"multiples of {factor}", "change the size or the number of levels"
        if self.encoder.stem == "imagenet" and self.data.source_size < ENCODER_STRIDE:
            got = f"{self.data.source_size} with encoder.stem=imagenet"
            return "data.source_size", got, f">= {ENCODER_STRIDE}", "use a larger source or encoder.stem=small"
        return None

    def _check_attention(self) -> tuple[str, ...] | None:
        d = self.denoiser
        there = [self.data.target_size >> level for level in range(len(d.channel_multipliers))]
        for resolution in d.attention_resolutions:
            if resolution not in there:
                got = f"{resolution} with data.target_size={self.data.target_size} and {len(there)} levels"
                allowed = "resolutions of the UNet: " + ", ".join(map(str, there))
                return "denoiser.attention_resolutions", got, allowed, "name only those"
        for level, multiplier in enumerate(d.channel_multipliers):
            resolution, channels = self.data.target_size >> level, d.base_channels * multiplier
            if resolution in d.attention_resolutions and channels % d.head_dim:
                got = f"{d.head_dim} with {channels} channels at resolution {resolution}"
                return (
                    "denoiser.head_dim",
                    got,
                    "divisors of the channels at attention resolutions",
                    "change one of them",
                )
        return None

    def _check_latent(self) -> tuple[str, ...] | None:
        if self.encoder.latent_dim < self.denoiser.sections:
            got = f"{self.encoder.latent_dim} with {self.denoiser.sections} sections (one a pair of modulated layers)"
            return (
                "encoder.latent_dim",
                got,
                f">= {self.denoiser.sections}",
                "widen the latent or use a shallower denoiser",
            )
        return None

    def _check_batch(self) -> tuple[str, ...] | None:
        batch, workers = self.train.global_batch, self.scale.workers
        if batch % workers:
            got = f"{workers} with train.global_batch={batch}"
            return "scale.workers", got, _divisors(batch), "choose a count that divides the batch"
        micro = self.train.micro_batch
        if micro is not None and batch % (micro * workers):
            got = f"{micro} with train.global_batch={batch} and scale.workers={workers}"
            return (
                "train.micro_batch",
                got,
                _divisors(batch // workers),
                "micro_batch times workers must divide the global batch",
            )
        return None

    def _check_steps(self) -> tuple[str, ...] | None:
        if self.sampling.steps > self.diffusion.steps:
            got = f"{self.sampling.steps} with diffusion.steps={self.diffusion.steps}"
            return "sampling.steps", got, f"1..{self.diffusion.steps}", "stride to fewer steps"
        if self.optim.decay == "cosine" and self.optim.warmup_steps >= self.train.steps:
            got = f"{self.optim.warmup_steps} with train.steps={self.train.steps}"
            return "optim.warmup_steps", got, f"< {self.train.steps}", "shorten the warm-up or train longer"
        return None
