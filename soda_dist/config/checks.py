"""Checks that fields of a configuration are compatible; each check yields the problems it finds."""

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

from soda_dist.config.fields import as_yaml
from soda_dist.config.problems import Problem
from soda_dist.config.sections import Sections

Check = Callable[[Sections], Iterator[Problem]]

ENCODER_STRIDE = 32
MODULATED = ("layer_modulation", "modulation")


def _all_divisors(number: int) -> list[int]:
    """List the divisors of `number`, ascending, in time proportional to its square root."""
    low = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})


def _divisors(number: int) -> str:
    """List the divisors of `number` as text."""
    return ", ".join(map(str, _all_divisors(number)))


def levels(config: Sections) -> Iterator[Problem]:
    count = len(config.denoiser.channel_multipliers)
    size, factor = config.data.target_size, 2 ** (count - 1)
    if size % factor:
        got = f"{size} with {count} levels in denoiser.channel_multipliers"
        yield Problem("data.target_size", got, f"multiples of {factor}", "change the size or the number of levels")


def attention(config: Sections) -> Iterator[Problem]:
    d = config.denoiser
    sizes = [config.data.target_size >> level for level in range(len(d.channel_multipliers))]
    for resolution in d.attention_resolutions:
        if resolution not in sizes:
            got = f"{resolution} with data.target_size={config.data.target_size} and {len(sizes)} levels"
            allowed = "resolutions of the UNet: " + ", ".join(map(str, sizes))
            yield Problem("denoiser.attention_resolutions", got, allowed, "choose from these")
    for level, multiplier in enumerate(d.channel_multipliers):
        resolution, channels = config.data.target_size >> level, d.base_channels * multiplier
        if resolution in d.attention_resolutions and channels % d.head_dim:
            got = f"{d.head_dim} with {channels} channels at resolution {resolution}"
            allowed = "divisors of the channels at attention resolutions"
            yield Problem("denoiser.head_dim", got, allowed, "change one of them")
    if d.conditioning in ("cross_attention", "grid_attention") and not d.attention_resolutions:
        got = f"none with denoiser.conditioning={d.conditioning}"
        yield Problem("denoiser.attention_resolutions", got, "at least one", "choose resolutions that attend to z")


def latent(config: Sections) -> Iterator[Problem]:
    sections = config.denoiser.sections
    if config.encoder.latent_dim < sections:
        got = f"{config.encoder.latent_dim} with {sections} sections (one per pair of layers)"
        yield Problem("encoder.latent_dim", got, f">= {sections}", "increase latent_dim or use a shallower denoiser")
    for name in ("guided_sections", "masked_sections"):
        wrong = [section for section in getattr(config.sampling, name) or () if section >= sections]
        if wrong:
            got, remedy = f"{wrong[0]} with {sections} sections", "number sections from 0, the outermost"
            yield Problem(f"sampling.{name}", got, f"0..{sections - 1}", remedy)
    if config.aggregation.kind == "transformer" and config.encoder.latent_dim % config.aggregation.heads:
        got = f"{config.aggregation.heads} with encoder.latent_dim={config.encoder.latent_dim}"
        yield Problem("aggregation.heads", got, _divisors(config.encoder.latent_dim), "choose a divisor of latent_dim")


def conditioning(config: Sections) -> Iterator[Problem]:
    """Layer masking needs sections, `modulation` modulated layers, grid attention one source and a trained encoder."""
    d = config.denoiser
    if d.layer_mask_rate and d.sections == 1:
        got = f"{d.layer_mask_rate} with denoiser.conditioning={d.conditioning}, which has no sections of z"
        yield Problem("denoiser.layer_mask_rate", got, "0", "set it to 0")
    if d.modulation != "two_stage" and d.conditioning not in MODULATED:
        got = f"{d.modulation} with denoiser.conditioning={d.conditioning}, which does not modulate"
        yield Problem("denoiser.modulation", got, "two_stage", "remove it")
    if d.conditioning == "grid_attention":
        yield from _one_source(config, "denoiser.conditioning=grid_attention", "feature grids are not aggregated")
        if config.aggregation.kind != "mean":
            got = f"{config.aggregation.kind} with denoiser.conditioning=grid_attention"
            yield Problem("aggregation.kind", got, "mean", "feature grids are not aggregated")
        if config.encoder.arch == "pretrained":
            got = "pretrained with denoiser.conditioning=grid_attention"
            allowed = "resnet18, resnet50, resnet50x2, vit_small, vit_base"
            yield Problem("encoder.arch", got, allowed, "train the encoder")


def method(config: Sections) -> Iterator[Problem]:
    """Baselines reject settings of parts that they lack."""
    d, name = config.denoiser, config.method
    if name == "soda":
        return
    without = f"with method={name}"
    forbidden: list[tuple[str, Any, Any]] = [("denoiser.layer_mask_rate", d.layer_mask_rate, 0)]
    if name in ("unconditional", "encdec"):
        forbidden.append(("denoiser.guidance_mask_rate", d.guidance_mask_rate, 0))
        forbidden.append(("sampling.guided_sections", config.sampling.guided_sections, None))
    if name in ("unconditional", "palette"):
        forbidden.append(("denoiser.conditioning", d.conditioning, "layer_modulation"))
        forbidden.append(("denoiser.modulation", d.modulation, "two_stage"))
        forbidden.append(("data.sources", config.data.sources, (1, 1)))
        forbidden.append(("sampling.sources", config.sampling.sources, 1))
        forbidden.append(("sampling.masked_sections", config.sampling.masked_sections, ()))
        forbidden.append(("encoder.model", config.encoder.model, None))
    if name == "unconditional":
        forbidden.append(("data.pose", config.data.pose, "none"))
    forbidden.append(("sampling.stochastic", config.sampling.stochastic, False))
    for field, got, allowed in forbidden:
        if got != allowed:
            value = as_yaml(allowed)
            yield Problem(field, f"{as_yaml(got)} {without}", value, f"set it to {value}, or choose another method")
    if name == "encdec" and d.conditioning not in MODULATED:
        got = f"{d.conditioning} {without}"
        yield Problem("denoiser.conditioning", got, ", ".join(MODULATED), "choose one that modulates the decoder")


def views(config: Sections) -> Iterator[Problem]:
    data = config.data
    if data.sources[0] > data.sources[1]:
        got = f"{data.sources[0]}, {data.sources[1]}"
        yield Problem("data.sources", got, "minimum, maximum", "give the smaller number first")
    if config.sampling.sources > 1 and data.views != "object":
        got = f"{config.sampling.sources} with data.views={data.views}"
        yield Problem("sampling.sources", got, "1", "use one source, or set data.views=object")
    if config.sampling.stochastic and config.sampling.sources == 1:
        yield Problem("sampling.stochastic", "true with sampling.sources=1", "false", "raise sampling.sources")
    if data.views == "same":
        if data.augment not in ("both", "none"):
            yield Problem("data.augment", f"{data.augment} with data.views=same", "both, none", "choose one of them")
        yield from _one_source(config, "data.views=same", "use one source, since all would be the same image")


def poses(config: Sections) -> Iterator[Problem]:
    """Cameras need objects and unflipped views (a flip has no camera), pixel coordinates need views of one image."""
    data, pose = config.data, config.pose
    if pose.masks == "separate" and not pose.mask_rate:
        yield Problem("pose.masks", "separate with pose.mask_rate=0", "together", "remove it, or set pose.mask_rate")
    if data.pose == "none":
        if config.sampling.guide != "latent":
            got = f"{config.sampling.guide} with data.pose=none"
            yield Problem("sampling.guide", got, "latent", "set it to latent, or set data.pose")
        if pose.mask_rate:
            got = f"{pose.mask_rate} with data.pose=none"
            yield Problem("pose.mask_rate", got, "0", "set it to 0, or set data.pose")
        return
    if data.pose == "cameras":
        if data.views not in ("object", "same"):
            got = f"{data.views} with data.pose=cameras"
            yield Problem("data.views", got, "object, same", "only objects have cameras")
        if data.augment != "none" and data.augmentation.flip:
            got, remedy = "true with data.pose=cameras", "set it to false, or set data.augment=none"
            yield Problem("data.augmentation.flip", got, "false", remedy)
    elif data.views not in ("augmented", "same"):
        got = f"{data.views} with data.pose=pixels"
        yield Problem("data.views", got, "augmented, same", "choose views of one image")
    yield from _vectors(config)


def _vectors(config: Sections) -> Iterator[Problem]:
    data, pose = config.data, config.pose
    if pose.conditioning == "grid":
        return
    if data.pose == "pixels":
        got = f"{pose.conditioning} with data.pose=pixels"
        yield Problem("pose.conditioning", got, "grid", "vector conditioning needs data.pose=cameras")
    if config.method != "soda" or config.denoiser.conditioning not in MODULATED:
        got = f"{pose.conditioning} with method={config.method}, denoiser.conditioning={config.denoiser.conditioning}"
        remedy = f"vector conditioning needs method=soda and one of {', '.join(MODULATED)}"
        yield Problem("pose.conditioning", got, "grid", remedy)
    yield from _one_source(config, f"pose.conditioning={pose.conditioning}", "vector conditioning takes one camera")


def _one_source(config: Sections, setting: str, remedy: str) -> Iterator[Problem]:
    """Yield a problem for several source views with a setting that allows only one."""
    if config.data.sources != (1, 1):
        yield Problem("data.sources", f"{config.data.sources} with {setting}", "1, 1", remedy)
    if config.sampling.sources != 1:
        yield Problem("sampling.sources", f"{config.sampling.sources} with {setting}", "1", remedy)


def encoder(config: Sections) -> Iterator[Problem]:
    e = config.encoder
    frozen = {"model": e.model, "weights": e.weights, "weights_sha256": e.weights_sha256}
    if e.arch == "pretrained":
        for name, value in frozen.items():
            if value is None:
                remedy = "set encoder.model, weights and weights_sha256; nothing is downloaded"
                yield Problem(f"encoder.{name}", "nothing with encoder.arch=pretrained", "a value", remedy)
        if e.lr_ratio != 1:
            got = f"{e.lr_ratio} with encoder.arch=pretrained"
            yield Problem("encoder.lr_ratio", got, "1", "a frozen encoder is not trained; remove it")
        return
    for name, value in frozen.items():
        if value is not None:
            got = f"a value with encoder.arch={e.arch}"
            yield Problem(f"encoder.{name}", got, "nothing", "remove it, or set encoder.arch=pretrained")
    if e.arch.startswith("vit"):
        for name, plain in (("stem", "imagenet"), ("norm", "batch")):
            if getattr(e, name) != plain:
                got = f"{getattr(e, name)} with encoder.arch={e.arch}"
                yield Problem(f"encoder.{name}", got, plain, "applies to ResNets only; remove it")
        if config.data.source_size % e.patch:
            got = f"{config.data.source_size} with encoder.patch={e.patch}"
            yield Problem("data.source_size", got, f"multiples of {e.patch}", "change the size or the patch")
    elif e.stem == "imagenet" and config.data.source_size < ENCODER_STRIDE:
        got = f"{config.data.source_size} with encoder.stem=imagenet"
        yield Problem("data.source_size", got, f">= {ENCODER_STRIDE}", "use a larger source or encoder.stem=small")


def batch(config: Sections) -> Iterator[Problem]:
    size, workers = config.train.global_batch, config.scale.workers
    if size % workers:
        got = f"{workers} with train.global_batch={size}"
        yield Problem("scale.workers", got, _divisors(size), "choose a count that divides the batch")
    micro = config.train.micro_batch
    if micro is not None and size % (micro * workers):
        got = f"{micro} with train.global_batch={size} and scale.workers={workers}"
        remedy = "choose a micro_batch that divides each worker's batch"
        yield Problem("train.micro_batch", got, _divisors(size // workers), remedy)


def norm_batch(config: Sections) -> Iterator[Problem]:
    """A group of batch norm lies within a micro-step: whole in a worker, or on some workers with nothing else."""
    group, micro, workers = config.norm_batch, config.micro_batch, config.scale.workers
    if group is None or (micro * workers % group == 0 and (micro % group == 0 or group % micro == 0)):
        return
    told = f"{group}" if config.train.norm_batch else f"null, so train.global_batch={group},"
    got = f"{told} with micro-batches of {micro} on scale.workers={workers}"
    fitting = [n for n in _all_divisors(micro * workers) if micro % n == 0 or n % micro == 0]
    remedy = "set it, which makes another model, or set encoder.norm=group"
    yield Problem("train.norm_batch", got, ", ".join(map(str, fitting)), remedy)


def steps(config: Sections) -> Iterator[Problem]:
    if config.method == "encdec" and config.diffusion.prediction != "noise":
        got = f"{config.diffusion.prediction} with method=encdec"
        yield Problem("diffusion.prediction", got, "noise, the default", "it denoises nothing; remove it")
    if config.sampling.steps > config.diffusion.steps:
        got = f"{config.sampling.steps} with diffusion.steps={config.diffusion.steps}"
        yield Problem("sampling.steps", got, f"1..{config.diffusion.steps}", "sample in fewer steps")


def evaluation(config: Sections) -> Iterator[Problem]:
    if config.evaluation.latents == "denoiser" and config.method == "encdec":
        yield Problem("evaluation.latents", "denoiser with method=encdec", "encoder", "encdec has no denoiser")


def online_probe(config: Sections) -> Iterator[Problem]:
    train, name = config.train, config.method
    if train.online_probe and name in ("unconditional", "palette"):
        yield Problem("train.online_probe", f"true with method={name}", "false", "choose a method with an encoder")
    if train.online_probe_label is not None and not train.online_probe:
        got = f"{train.online_probe_label} with train.online_probe=false"
        yield Problem("train.online_probe_label", got, "nothing", "remove it, or set train.online_probe=true")


def stop(config: Sections) -> Iterator[Problem]:
    """Validation needs held-out images, and what chooses by a metric needs what that is computed from."""
    train, split = config.train, config.train.stop.split
    chosen = {"train.stop.metric": train.stop.metric, "train.keep_best": train.keep_best}
    chosen = {field: metric for field, metric in chosen.items() if metric != "none"}
    if chosen and split in (config.data.train_split, config.evaluation.test_split):
        remedy = "name a split that is neither trained on nor tested on"
        yield Problem("train.stop.split", split, "a held-out split", remedy)
    elif train.holds_out and split == config.data.train_split:
        yield Problem("train.stop.split", split, "a held-out split", "name a split that is not trained on")
    for field, metric in chosen.items():
        if metric == "probe_accuracy" and not train.online_probe:
            got, remedy = "probe_accuracy with train.online_probe=false", "set train.online_probe=true"
            yield Problem(field, got, "true", remedy)
        if metric in ("retrieval", "effective_rank"):
            if config.method in ("unconditional", "palette"):
                got = f"{metric} with method={config.method}"
                yield Problem(field, got, "loss", "choose a method with an encoder, or another metric")
            if config.data.pose == "cameras":
                got = f"{metric} with data.pose=cameras"
                yield Problem(field, got, "loss, probe_accuracy", "augmented views have no cameras")


def keep(config: Sections) -> Iterator[Problem]:
    every, kept = config.train.checkpoint_every_steps, config.train.keep_every_steps
    if kept is not None and kept % every:
        got = f"{kept} with train.checkpoint_every_steps={every}"
        yield Problem("train.keep_every_steps", got, f"multiples of {every}", "choose one, or another interval")


CHECKS: tuple[Check, ...] = (
    levels, attention, encoder, method, conditioning, latent, views, poses, batch, norm_batch, steps, evaluation,
    online_probe, stop, keep,
)  # fmt: skip
