"""The sections of the configuration tree. Each default stands here and nowhere else; presets state differences.

Values are the paper's (table 12) unless a docstring says "our reading". Sizes are pixels, rates are probabilities,
steps are optimizer updates, and batches count view pairs.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from soda_dist.config.evaluation import Evaluation
from soda_dist.config.fields import Count, CountOrZero, Fraction, Node, NotNegative, Positive, Rate, Sources
from soda_dist.config.problems import Problem, ProblemError


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
    randaugment_on: Literal["worker", "device"] = "worker"
    """Who computes it: the data workers, or the training device in batches, which leaves the workers more time."""

    @model_validator(mode="after")
    def _ordered(self) -> "Augmentation":
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                got = f"{low}, {high}"
                raise ProblemError(Problem(name, got, "0 < low <= high", "give the smaller bound first"))
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
    views: Literal["augmented", "same", "object", "class"] = "augmented"
    """What the views share (section 3.3): an image, augmented for each anew; an image and its augmentation too, which
    makes an auto-encoder; an object, seen from several places; or a class."""
    sources: tuple[Sources, Sources] = (1, 1)
    """Fewest and most source views; in training each number between them is equally likely."""
    augment: Literal["both", "source", "target", "none"] = "both"
    """Which views are augmented (figure 6); the others are central squares of their images."""
    augmentation: Augmentation = Augmentation()
    pose: Literal["none", "pixels", "cameras"] = "none"
    """What is told of each view's place: nothing, its pixels' coordinates in the image, or its camera (section 3.3)."""


class Encoder(Node):
    """The image encoder E (section 3.2, appendix C)."""

    arch: Literal["resnet18", "resnet50", "resnet50x2", "vit_small", "vit_base", "pretrained"] = "resnet50"
    """`pretrained`: a frozen one, as unCLIP has (section F.1), named by the three fields below."""
    model: str | None = None
    """timm's name of the frozen encoder; it is never downloaded."""
    weights: str | None = None
    """File or URI of its weights: safetensors, or a PyTorch state dict, of which nothing but tensors is read."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest that the weights must have."""
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """Multiplier of every channel count of `arch`; below 1 for small machines."""
    patch: Annotated[int, Field(ge=2, le=64)] = 16
    """Side of a ViT's patches."""
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


class Aggregation(Node):
    """How the latents of several sources become one (section 3.3, tables 5, 12); a single source stays as it is."""

    kind: Literal["mean", "transformer"] = "mean"
    depth: Count = 2
    heads: Count = 4
    multiplier: Count = 4
    """Width of the hidden layers over that of z."""


class Pose(Node):
    """How a view's place is told to the networks (section 3.3, G.3, table 8). Read where `data.pose` is not `none`."""

    conditioning: Literal["grid", "absolute", "relative", "grid_absolute", "grid_relative"] = "grid"
    """A grid beside the first layer's channels, a vector that modulates, or both."""
    rays: Literal["concat", "normalized", "plane", "sphere"] = "sphere"
    coordinates: Literal["cartesian", "polar"] = "polar"
    radius: Positive = 1.0
    """Of the sphere around the object that rays are cast on, in the unit of the cameras' places (our reading)."""
    extent: Positive = 4.0
    """Length that becomes 1 before it is encoded, in the same unit (our reading)."""
    encoding_dim: Annotated[int, Field(ge=24, multiple_of=2)] = 512
    """Width of the sinusoidal encoding."""
    scale: Positive = 1e-4
    """Divides the coordinates in the encoding (figure 10)."""
    mask_rate: Fraction = 0.0
    """Probability that the poses are masked, independently of z (table 10, masking)."""


class Denoiser(Node):
    """The denoising UNet D (section 3.1, appendix C)."""

    conditioning: Literal["layer_modulation", "modulation", "broadcast", "cross_attention", "grid_attention"] = (
        "layer_modulation"
    )
    """How z reaches the layers: each pair of layers by a section of z; all by all of z; beside the first channels
    (without modulation); attention to z's sections; attention to the encoder's grid (without bottleneck)."""
    modulation: Literal["two_stage", "no_scale", "sum", "concat"] = "two_stage"
    """How t and z are joined where z modulates (tables 9, 11)."""
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
        """Sections of z: one for each pair of layers (section 3.2.1), or a single one."""
        if self.conditioning not in ("layer_modulation", "cross_attention"):
            return 1
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
    """w: 0 drops the condition, 1 is plain conditional sampling, 2 to 3 the paper's range."""
    guide: Literal["latent", "pose", "both"] = "latent"
    """What guidance leaves out in its branch without condition (table 10, masking)."""
    guided_sections: tuple[CountOrZero, ...] | None = None
    """Sections of z that this branch leaves out; none: all."""
    masked_sections: tuple[CountOrZero, ...] = ()
    """Sections of z that are left out throughout, and so drawn freely (section 4.3.1)."""
    sources: Sources = 1
    """Source views that a sample is given."""
    stochastic: bool = False
    """Whether each step is conditioned on one source drawn at random instead of their aggregation (table 5)."""
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
    max_unreadable: Fraction = 0.05
    """Share of the rows seen whose images cannot be read, above which a run stops; each is listed, and another row of
    its group stands in."""
    online_probe: bool = False
    """Whether a linear probe is trained along, behind a stopped gradient (section E.1), and its accuracy logged. Its
    dropout, label smoothing and initial values are those of `evaluation.probe`."""
    online_probe_label: str | None = None
    """Column that it predicts; `attributes`: all of them; none: the data set's main label."""
    online_probe_lr: Positive = 1e-3
    """Its learning rate, constant (our reading)."""


class Scale(Node):
    """The machines that a run asks for."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    data_cpus_per_worker: Count = 1
    """Ray Data tasks that decode and augment for one worker at a time, a CPU each."""
    data_memory_mb: Annotated[int, Field(ge=64)] = 512
    """Object-store memory that one worker's pipeline holds at the most; the run starts only where there is as much."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Times that a lost worker group is started again; -1: without limit (spot machines)."""
    start_timeout_s: Positive = 600.0
    """Longest wait for the workers' resources, autoscaling included."""


class Sections(Node):
    """All sections and the fields beside them, each valid by itself; `RunConfig` checks that they fit together."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    method: Literal["soda", "encdec", "unconditional", "palette"] = "soda"
    """The model: SODA and its ablations, or a baseline over the same networks (section F.1)."""
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
        """View pairs that one worker takes through the network at a time."""
        return self.train.micro_batch or self.train.global_batch // self.scale.workers

    @property
    def accumulation(self) -> int:
        """Micro-batches of one worker in one update."""
        return self.train.global_batch // (self.micro_batch * self.scale.workers)
