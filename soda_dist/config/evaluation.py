"""The section `evaluation` of the configuration, see `schema`."""

from typing import Annotated, Literal

from pydantic import Field

from soda_dist.config.fields import Count, CountOrZero, Fraction, Node, NotNegative, Positive, Rate, Sources


class Probe(Node):
    """The linear probe (section E.1, table 12)."""

    epochs: Count = 20
    batch: Count = 256
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        *(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        *(1e-1, 3e-1),
    )
    """All are trained at once; the best on held-out training rows is reported. Without dropout, latents of a short run
    (eigenvalues of their correlations from 3e-6 to 32) need the largest."""
    dropout: Rate = 0.1
    label_smoothing: Rate = 0.0
    """0.1 for ImageNet."""
    weight_std: Positive = 0.02
    bias: float = 0.0
    """Initial bias; -10 for ImageNet."""
    passes: CountOrZero = 0
    """Times that each training image is encoded with fresh crops and flips, which the epochs take in turn (D.3 and E.1,
    for ImageNet); 0: once, without any."""
    crop_flip_rate: Fraction = 0.65
    """Of these views, in place of `data.augmentation.crop_flip_rate`; table 12 has it of crops, and our reading is that
    flips go with them as in training. RandAugment is left out."""
    workers: Count = 1
    """That fit each probe together, each with a part of the training rows."""


class Knn(Node):
    """Weighted nearest neighbours by cosine similarity."""

    k: Count = 20
    temperature: Positive = 0.07


class Activations(Node):
    """Where a denoiser is read as an encoder (section F.1): a layer's pooled activations over a noised image."""

    layers: tuple[str, ...] = ()
    """Candidates, such as `up.0`; none: all layers."""
    noise_levels: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.01, 0.05, 0.1, 0.25)
    """Candidates, as shares of `diffusion.steps` (our reading)."""
    search_images: Annotated[int, Field(ge=20)] = 2000
    """First training images on which the best pair of the two is found, a fifth of them held out."""


class Dci(Node):
    """Disentanglement, completeness, informativeness and their kin (section E.3)."""

    factors: tuple[str, ...] = ()
    """Label columns; none: all factors of the data set, or its attributes where it has no factors."""
    regressor: Literal["lightgbm", "sklearn", "lasso"] = "lightgbm"
    rounds: Count = 100
    """Of boosting."""
    max_train_images: Count = 10_000
    max_test_images: Count = 5_000


class Reconstruction(Node):
    """Images drawn again from their own latents (section 4.2.1), and the sweep of figure 9."""

    images: Count = 64
    guidance: tuple[NotNegative, ...] = (1.0, 2.0, 3.0)
    """Scales beside `sampling.guidance`."""
    steps: tuple[Count, ...] = ()
    """Numbers of strided steps beside `sampling.steps`."""


class NovelViews(Node):
    """Objects drawn as other cameras see them (section 4.2.2)."""

    objects: Count = 8
    """Of the test split."""
    views: Count = 8
    """Cameras that each is asked for, at most."""
    sources: tuple[Sources, ...] = ()
    """Numbers of source views; none: those of 1, 3, 5, 7 and 9 that leave every object a view to ask for."""


class Weights(Node):
    """A published network's weights; they are never downloaded."""

    weights: str | None = None
    """File or URI: safetensors, or a PyTorch file, of which nothing but tensors is read."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """None: the file must be the published one. A digest allows any file that has it, which results then say."""


class Lpips(Weights):
    """Package lpips over torchvision's weights (section E.2)."""

    net: Literal["alex", "vgg"] = "alex"


class Fid(Node):
    """FID, KID, precision and recall (section E.2)."""

    sets: tuple[Literal["reconstruction", "samples", "novel_views"], ...] = ()
    """What is drawn; none: all that the run can draw."""
    images: Annotated[int, Field(ge=2)] = 10_000
    """Of each set, at most; as many images of the test split are what it is held against."""
    feature_images: Annotated[int, Field(ge=2)] = 10_000
    """First images whose features are kept, for KID, precision and recall."""


class Tools(Node):
    """Pictures by the latent tools (sections 4.3.1 and E.3)."""

    images: Annotated[int, Field(ge=2)] = 4
    """Of the test split, in each picture; interpolation and mixing pair them."""
    directions: Count = 6
    """Principal directions of z."""
    ks: Annotated[tuple[float, ...], Field(min_length=1)] = (-3.0, -1.5, 0.0, 1.5, 3.0)
    """Moves along a direction, in standard deviations of the latents."""
    weights: Annotated[int, Field(ge=2)] = 7
    """Steps of an interpolation, its ends among them."""
    noises: Count = 4
    """Draws of each masked latent."""
    attributes: Count = 4
    """First attributes, or values of a class or factor, of `evaluation.label`, that images are moved along."""
    measured_images: Annotated[int, Field(ge=2)] = 32
    """Of the test split, on which the effect of these moves is measured."""


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
    actors: Count | None = None
    """Actors that do the work; none: as many as the cluster has GPUs for them, or CPUs where there are no GPUs."""
    baselines: bool = True
    """Whether an untrained encoder and raw pixels are measured beside the trained one."""
    latents: Literal["encoder", "denoiser"] = "encoder"
    """What is probed; a method without an encoder is always read in its denoiser."""
    activations: Activations = Activations()
    images: Count = 8
    """Images in each sample and reconstruction grid."""
    probe: Probe = Probe()
    knn: Knn = Knn()
    dci: Dci = Dci()
    reconstruction: Reconstruction = Reconstruction()
    novel_views: NovelViews = NovelViews()
    inception: Weights = Weights()
    lpips: Lpips = Lpips()
    fid: Fid = Fid()
    tools: Tools = Tools()
