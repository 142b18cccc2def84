"""Section `evaluation` of the configuration."""

from typing import Annotated, Literal

from pydantic import Field

from soda_dist.config.fields import Count, CountOrZero, Fraction, Node, NotNegative, Positive, Rate, Sources, Uri


class Probe(Node):
    """The linear probe (section E.1, table 12)."""

    epochs: Count = 20
    batch: Count = 256
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    """Trained together; the best on held-out training rows is reported. Latents of short runs need the largest."""
    dropout: Rate = 0.1
    label_smoothing: Rate = 0.0
    """0.1 for ImageNet."""
    weight_std: Positive = 0.02
    bias: float = 0.0
    """Initial bias; -10 for ImageNet."""
    passes: CountOrZero = 0
    """Encodings per training image with fresh crops and flips, for the epochs in turn (D.3, E.1); 0 = one, without."""
    crop_flip_rate: Fraction = 0.65
    """Replaces `data.augmentation.crop_flip_rate` for these encodings. Table 12 gives the rate of crops; our reading is
    that flips go with them as in training. RandAugment is not applied."""
    workers: Count = 1
    """Data-parallel workers per probe."""


class Knn(Node):
    """Weighted nearest neighbours by cosine similarity."""

    k: Count = 20
    temperature: Positive = 0.07


class Activations(Node):
    """Latents of a denoiser without encoder (section F.1): pooled activations of a layer, for a noised image."""

    layers: tuple[str, ...] = ()
    """Candidate layers, such as `up.0`; empty = all."""
    noise_levels: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.01, 0.05, 0.1, 0.25)
    """Candidate noise levels, as fractions of `diffusion.steps` (our reading)."""
    search_images: Annotated[int, Field(ge=20)] = 2000
    """Maximum training images for the search of layer and noise level, a fifth of them held out."""


class LabelFree(Node):
    """Quality of latents without labels: retrieval of the other view and effective rank (not in the paper)."""

    images: Annotated[int, Field(ge=16, le=20_000)] = 2000
    """Maximum images of the test split, drawn at random. Each is seen in two views, augmented as by `probe.passes`."""


class Dci(Node):
    """Disentanglement, completeness, informativeness and related metrics (section E.3)."""

    factors: tuple[str, ...] = ()
    """Label columns; empty = all factors of the data set, or its attributes if it has no factors."""
    regressor: Literal["lightgbm", "sklearn", "lasso"] = "lightgbm"
    rounds: Count = 100
    """Boosting rounds."""
    max_train_images: Count = 10_000
    """Maximum training images, as in the implementation that the paper follows (E.3); drawn at random."""
    max_test_images: Count = 5_000


class Reconstruction(Node):
    """Images sampled from their latents (section 4.2.1), and the sweep of figure 9."""

    images: Count | None = None
    """Maximum images of the test split, drawn at random; None = all."""
    guidance: tuple[NotNegative, ...] = (1.0, 2.0, 3.0)
    """Guidance scales to try besides `sampling.guidance`."""
    steps: tuple[Count, ...] = ()
    """Numbers of strided steps to try besides `sampling.steps`."""


class NovelViews(Node):
    """Samples of objects from other cameras (section 4.2.2)."""

    objects: Count | None = None
    """Maximum objects of the test split, drawn at random; None = all."""
    views: Count | None = None
    """Maximum target views per object, drawn at random among those that no number of sources uses; None = all."""
    sources: tuple[Sources, ...] = ()
    """Numbers of source views; empty = 1, 3, 5, 7 and 9, as far as every object has a target view left."""


class Weights(Node):
    """Weights of a published network; they are never downloaded."""

    weights: Uri | None = None
    """File or URI: safetensors, or a PyTorch file, of which only tensors are read."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """None = the published file is required; a digest allows another file, which results then record."""


class Lpips(Weights):
    """Package lpips over torchvision's weights (section E.2)."""

    net: Literal["alex", "vgg"] = "vgg"
    """VGG by default: our reading of the paper, whose reference for LPIPS's network is VGG's."""


class Fid(Node):
    """FID, KID, precision and recall (section E.2)."""

    sets: tuple[Literal["reconstruction", "samples", "novel_views"], ...] = ()
    """Sets to generate; empty = all that the run can generate."""
    images: Annotated[int, Field(ge=2)] | None = None
    """Maximum images per set, drawn at random and compared with as many of the test split; None = all."""
    feature_images: Annotated[int, Field(ge=2)] = 10_000
    """Maximum images whose features are kept for KID, precision and recall."""


class Tools(Node):
    """Image grids of the latent tools (sections 4.3.1 and E.3)."""

    images: Annotated[int, Field(ge=2)] = 4
    """Images of the test split per grid; interpolation and mixing pair them."""
    directions: Count = 6
    """Number of principal directions of z."""
    ks: Annotated[tuple[float, ...], Field(min_length=1)] = (-3.0, -1.5, 0.0, 1.5, 3.0)
    """Offsets along a direction, in standard deviations of the latents."""
    weights: Annotated[int, Field(ge=2)] = 7
    """Steps of an interpolation, including its ends."""
    noises: Count = 4
    """Samples of each masked latent."""
    attributes: Count = 4
    """First attributes, or values of a class or factor, of `evaluation.label` along which to move images."""
    measured_images: Annotated[int, Field(ge=2)] = 32
    """Images of the test split on which to measure the effect of these moves."""


class Evaluation(Node):
    """Evaluation of a trained run."""

    train_split: str = "train"
    test_split: str = "test"
    max_train_images: Count | None = None
    """Maximum images of the split, drawn at random by `seed`; None = all. The rows of a smaller maximum are among those
    of a larger one. Other limits of this section draw in the same order."""
    max_test_images: Count | None = None
    """The same for the test split, for probe, knn and dci."""
    label: str | None = None
    """Column to predict; None = the main label of the data set."""
    batch: Count = 128
    actors: Count | None = None
    """Number of actors; None = as many as the cluster has GPUs for, or CPUs if it has no GPUs."""
    baselines: bool = True
    """Also measure an untrained encoder and raw pixels."""
    latents: Literal["encoder", "denoiser"] = "encoder"
    """Network whose latents are probed; always the denoiser for a method without an encoder."""
    activations: Activations = Activations()
    images: Count = 8
    """Images per sample and reconstruction grid."""
    probe: Probe = Probe()
    knn: Knn = Knn()
    label_free: LabelFree = LabelFree()
    dci: Dci = Dci()
    reconstruction: Reconstruction = Reconstruction()
    novel_views: NovelViews = NovelViews()
    inception: Weights = Weights()
    lpips: Lpips = Lpips()
    fid: Fid = Fid()
    tools: Tools = Tools()
