"""Fields that contradict each other are refused by name, and the nearest sound configuration is not."""

import pytest

from soda_dist.config import load_config
from soda_dist.errors import UserError

NO_LAYERS, NO_MASKS = ("denoiser.layer_mask_rate=0",), ("denoiser.layer_mask_rate=0", "denoiser.guidance_mask_rate=0")
CAMERAS = ("data.views=object", "data.augment=none", "data.pose=cameras")
FROZEN = (
    "encoder.arch=pretrained", "encoder.model=resnet18", "encoder.weights=w.safetensors",
    f"encoder.weights_sha256='{'0' * 64}'",
)  # fmt: skip
VIT = ("encoder.arch=vit_small", "encoder.patch=8")

# What is wrong, the field that is named, and what makes it sound again.
CONTRADICTIONS = [
    (("denoiser.conditioning=broadcast",), "denoiser.layer_mask_rate", NO_LAYERS),
    (("denoiser.conditioning=modulation",), "denoiser.layer_mask_rate", NO_LAYERS),
    (("method=palette",), "denoiser.layer_mask_rate", NO_LAYERS),
    (("method=unconditional", *NO_LAYERS), "denoiser.guidance_mask_rate", NO_MASKS),
    (("method=encdec", *NO_LAYERS), "denoiser.guidance_mask_rate", NO_MASKS),
    (("method=encdec", *NO_MASKS, "denoiser.conditioning=broadcast"), "denoiser.conditioning",
     ("denoiser.conditioning=modulation",)),
    (("method=palette", *NO_LAYERS, "denoiser.modulation=sum"), "denoiser.modulation",
     ("denoiser.modulation=two_stage",)),
    (("method=palette", *NO_LAYERS, "data.sources=[1,2]"), "data.sources", ("data.sources=[1,1]",)),
    (("method=unconditional", *NO_MASKS, *CAMERAS), "data.pose", ("data.pose=none",)),
    (("method=palette", *NO_LAYERS, *FROZEN), "encoder.model", ("method=soda",)),
    (("denoiser.conditioning=cross_attention", "denoiser.modulation=sum"), "denoiser.modulation",
     ("denoiser.modulation=two_stage",)),
    (("denoiser.conditioning=cross_attention", "denoiser.attention_resolutions=[]"), "denoiser.attention_resolutions",
     ("denoiser.attention_resolutions=[8]",)),
    (("denoiser.conditioning=grid_attention", *NO_LAYERS, "data.sources=[1,2]"), "data.sources",
     ("data.sources=[1,1]",)),
    (("denoiser.conditioning=grid_attention", *NO_LAYERS, "aggregation.kind=transformer"), "aggregation.kind",
     ("aggregation.kind=mean",)),
    (("denoiser.conditioning=grid_attention", *NO_LAYERS, *FROZEN), "encoder.arch",
     ("denoiser.conditioning=modulation",)),
    (("aggregation.kind=transformer", "aggregation.heads=5"), "aggregation.heads", ("aggregation.heads=4",)),
    (("data.sources=[3,2]",), "data.sources", ("data.sources=[2,3]",)),
    (("data.views=same", "data.augment=source"), "data.augment", ("data.augment=both",)),
    (("data.views=same", "data.sources=[1,2]"), "data.sources", ("data.sources=[1,1]",)),
    (("sampling.sources=3",), "sampling.sources", ("data.views=object",)),
    (("sampling.stochastic=true", "data.views=object"), "sampling.stochastic", ("sampling.sources=2",)),
    (("sampling.stochastic=true", "sampling.sources=2", "data.views=object", "method=encdec", *NO_MASKS),
     "sampling.stochastic", ("sampling.stochastic=false",)),
    (("sampling.masked_sections=[5]",), "sampling.masked_sections", ("sampling.masked_sections=[4]",)),
    (("sampling.guide=pose",), "sampling.guide", CAMERAS),
    (("pose.mask_rate=0.1",), "pose.mask_rate", CAMERAS),
    ((*CAMERAS, "pose.masks=separate"), "pose.masks", ("pose.mask_rate=0.1",)),
    (("data.pose=cameras", "data.augment=none"), "data.views", ("data.views=object",)),
    (("data.pose=cameras", "data.views=object"), "data.augmentation.flip", ("data.augmentation.flip=false",)),
    (("data.pose=pixels", "data.views=object"), "data.views", ("data.views=augmented",)),
    (("data.pose=pixels", "pose.conditioning=absolute"), "pose.conditioning", ("pose.conditioning=grid",)),
    ((*CAMERAS, "pose.conditioning=relative", "data.sources=[1,2]"), "data.sources", ("data.sources=[1,1]",)),
    ((*CAMERAS, "pose.conditioning=relative", "denoiser.conditioning=cross_attention"), "pose.conditioning",
     ("pose.conditioning=grid",)),
    (("encoder.arch=pretrained",), "encoder.model", FROZEN),
    ((*FROZEN, "encoder.lr_ratio=2.0"), "encoder.lr_ratio", ("encoder.lr_ratio=1.0",)),
    (("encoder.model=resnet18",), "encoder.model", FROZEN),
    ((*VIT, "encoder.stem=small"), "encoder.stem", ("encoder.stem=imagenet",)),
    ((*VIT, "encoder.norm=group"), "encoder.norm", ("encoder.norm=batch",)),
    ((*VIT, "data.source_size=36"), "data.source_size", ("data.source_size=40",)),
    (("evaluation.latents=denoiser", "method=encdec", *NO_MASKS), "evaluation.latents",
     ("evaluation.latents=encoder",)),
    (("method=palette", *NO_LAYERS, "train.online_probe=true"), "train.online_probe", ("train.online_probe=false",)),
    (("method=encdec", *NO_MASKS, "diffusion.prediction=velocity"), "diffusion.prediction",
     ("diffusion.prediction=noise",)),
    (("train.online_probe_label=colour",), "train.online_probe_label", ("train.online_probe=true",)),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "field", "mended"), CONTRADICTIONS)
def test_a_contradiction_names_its_field_and_can_be_mended(wrong, field, mended) -> None:
    with pytest.raises(UserError) as refused:
        load_config("solids", wrong)
    assert refused.value.field == field and "\n" not in str(refused.value)
    load_config("solids", (*wrong, *mended))
