"""The frozen encoder against timm's own models: features, preprocessing, files, and that nothing moves it."""

import hashlib
import io
import socket
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from soda_dist.config.load import load_config, with_fields
from soda_dist.errors import UserError
from soda_dist.evaluation.model_sources import TimmEncoder
from soda_dist.models.lr_equalization import load_plain_state_dict, plain_state_dict
from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.models.pretrained import FrozenEncoder, UnsuitableModelError, load_frozen
from soda_dist.training.build import build_model

SIDE = 160
"""Of what the models named test_* were trained on."""


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def original(model: str, seed: int = 1, **settings: Any) -> Any:
    """timm's model with weights that nothing starts with, its statistics too."""
    torch.manual_seed(seed)
    made = timm.create_model(model, pretrained=False, **settings).eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.05 * torch.randn_like(tensor)
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return made


def frozen(model: str, image_size: int = SIDE) -> FrozenEncoder:
    torch.manual_seed(2)
    return FrozenEncoder(model=model, image_size=image_size)


def file_of(model: nn.Module, **changes: Tensor | None) -> bytes:
    """The model's safetensors; a change of None removes a tensor. Names have `__` for dots here."""
    tensors: dict[str, Tensor | None] = {**model.state_dict()}
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return save({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None})


def load(encoder: FrozenEncoder, content: bytes) -> None:
    load_frozen(encoder, content, hashlib.sha256(content).hexdigest())


def pixels(count: int, side: int = SIDE) -> Tensor:
    """[0, 1], as smooth as images are."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, (side, side), mode="bilinear")


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def source(count: int, side: int = SIDE) -> Tensor:
    return normalised(pixels(count, side), IMAGENET_MEAN, IMAGENET_STD)


def test_a_file_of_a_model_with_the_same_pixels_gives_its_very_features():
    theirs, ours = original("resnet10t"), frozen("resnet10t", 176)
    x = source(2, 176)
    before = ours(x)
    load(ours, file_of(theirs))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert torch.equal(ours(x), expected)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert ours.latent_dim == expected.shape[1] == 512


@pytest.mark.parametrize(
    ("model", "width"),
    [("test_vit", 64), ("test_convnext", 64), ("test_efficientnet", 256), ("test_resnet", 96), ("test_byobnet", 256)],
)
def test_other_models_see_pixels_normalised_their_own_way(model, width):
    """test_vit takes [-1, 1]; classifiers are `head`, `head.fc`, `classifier` and `fc`."""
    theirs, ours = original(model), frozen(model)
    load(ours, file_of(theirs))
    config = theirs.pretrained_cfg
    with torch.no_grad():
        x = normalised(pixels(2), config["mean"], config["std"])
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    z = ours(source(2))
    assert z.shape == (2, ours.latent_dim) == (2, width)
    scale = float(expected.abs().max())
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-4 * scale)
    if model == "test_vit":
        assert config["mean"] == (0.5, 0.5, 0.5)
        assert float((ours.backbone(source(2)) - expected).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("side", [64, 224])
def test_images_of_another_size_are_resampled_to_the_models_own(side):
    ours = frozen("test_vit", side)
    same = frozen("test_vit")
    same.load_state_dict(ours.state_dict())
    x = source(2, side)
    larger = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
    torch.testing.assert_close(ours(x), same(larger), rtol=1e-4, atol=1e-4)
    wrong = F.interpolate(x, (SIDE, SIDE), mode="nearest")
    assert not torch.allclose(ours(x), same(wrong), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=rf"images: got \[160, 160\]; allowed: \[{side}, {side}\]"):
        ours(larger)


def test_a_file_without_the_classifier_will_do_and_dtypes_are_converted():
    theirs, ours = original("test_vit"), frozen("test_vit")
    load(ours, file_of(theirs, head__weight=None, head__bias=None, norm__weight=theirs.norm.weight.detach().half()))
    assert torch.equal(ours.backbone.norm.weight, theirs.norm.weight.half().float())
    assert torch.equal(ours.backbone.pos_embed, theirs.pos_embed)


def test_a_pytorch_file_of_tensors_will_do():
    theirs, ours, file = original("test_vit"), frozen("test_vit"), io.BytesIO()
    torch.save(theirs.state_dict(), file)
    load(ours, file.getvalue())
    assert torch.equal(ours.backbone.pos_embed, theirs.pos_embed)


def refusal(encoder: FrozenEncoder, content: bytes, sha256: str | None = None) -> UserError:
    """The error; nothing of the file may have been taken over."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_frozen(encoder, content, hashlib.sha256(content).hexdigest() if sha256 is None else sha256)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert "\n" not in str(caught.value)
    return caught.value


def test_another_digest_is_refused():
    content = file_of(original("test_vit"))
    error = refusal(frozen("test_vit"), content, "0" * 64)
    assert error.field == "encoder.weights_sha256"
    assert "0" * 64 in str(error) and hashlib.sha256(content).hexdigest() in str(error)
    changed = bytearray(content)
    changed[-1] ^= 1
    assert refusal(frozen("test_vit"), bytes(changed), hashlib.sha256(content).hexdigest()).field == error.field


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was read",)


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({**original("test_vit").state_dict(), "bomb": Bomb()}, file)
    return file.getvalue()


def test_what_is_no_file_of_tensors_is_refused():
    whole = file_of(original("test_vit"))
    for content in (pickled(), whole[:-1], whole[:1000], whole[:7], b"", b"<html>no such file</html>"):
        error = refusal(frozen("test_vit"), content)
        assert error.field == "encoder.weights"
        assert error.allowed == "safetensors, or a PyTorch file of named tensors only"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pos_embed": None}, "weights without pos_embed;"),
        ({"blocks__0__extra": torch.zeros(1)}, "weights with unknown blocks.0.extra;"),
        ({"header__weight": torch.zeros(1)}, "weights with unknown header.weight;"),
        ({"norm__bias": torch.zeros(63)}, "weights with another shape or kind of number in norm.bias;"),
        (
            {"norm__bias": torch.zeros(64, dtype=torch.int8)},
            "weights with another shape or kind of number in norm.bias;",
        ),
        ({"norm__bias": None, "more": torch.zeros(1)}, "weights without norm.bias and weights with unknown more;"),
    ],
)
def test_tensors_that_are_not_the_models_are_named(changes, says):
    error = refusal(frozen("test_vit"), file_of(original("test_vit"), **changes))
    assert error.field == "encoder.weights"
    assert says in str(error)


def test_another_architectures_file_is_refused():
    error = refusal(frozen("test_vit"), file_of(original("test_resnet")))
    assert "without blocks.0.attn.proj.bias" in str(error) and "and weights with unknown bn1.bias" in str(error)
    assert "more" in str(error) and len(str(error)) < 700
    error = refusal(frozen("test_vit"), file_of(original("test_vit", img_size=96)))
    assert "another shape or kind of number in pos_embed;" in str(error)


def test_names_that_timm_does_not_have_are_refused_with_close_ones():
    with pytest.raises(ValueError, match=r"model: got vit_bas_patch16_224; allowed: .*vit_base_patch16_224"):
        frozen("vit_bas_patch16_224")
    with pytest.raises(ValueError, match=r"got test_vit.r160_in2k; allowed: test_vit with a tag .*: r160_in1k"):
        frozen("test_vit.r160_in2k")
    for name in (
        "hf-hub:timm/test_vit.r160_in1k",
        "hf_hub:timm/test_vit",
        "local-dir:/tmp",
        "timm/test_vit",
        "xyzzy",
        ".",
    ):
        with pytest.raises(ValueError, match=r"^model: got "):
            frozen(name)


def test_a_tag_decides_about_mean_and_variance():
    """The same architecture, trained twice, on pixels scaled in two ways (timm's table)."""
    plain, symmetric = (frozen(f"tf_efficientnet_b0.{tag}") for tag in ("aa_in1k", "ap_in1k"))
    assert plain.scale.tolist() == [[[1.0]]] * 3 and plain.shift.tolist() == [[[0.0]]] * 3
    white = normalised(torch.ones(3, 1, 1), IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(white * symmetric.scale + symmetric.shift, torch.ones(3, 1, 1))
    assert frozen("tf_efficientnet_b0.aa_in1k").latent_dim == 1280


def test_training_leaves_it_bit_identical():
    """Two optimizers, dropout, batch norm: none of them may move it."""
    e = frozen("test_resnet")
    load(e, file_of(original("test_resnet")))
    model = nn.ModuleDict({"encoder": e, "head": nn.Linear(e.latent_dim, 2)}).train()
    before, x = {name: tensor.clone() for name, tensor in model.state_dict().items()}, source(4)
    expected = e(x)
    assert not list(e.parameters()) and not any(tensor.requires_grad for tensor in e.state_dict().values())
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)
        assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 2 * e.latent_dim + 2
        for _ in range(2):
            z = model["encoder"](x)
            assert torch.equal(z, expected)
            model["head"](z).square().sum().backward()
            optimizer.step()
            model.requires_grad_(True).train()
    after = model.state_dict()
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"head"}
    assert not any(module.training for module in e.modules())


def test_features_have_no_gradient_even_where_the_images_have_one():
    z = frozen("test_vit")(source(1).requires_grad_())
    assert not z.requires_grad and z.grad_fn is None


def test_state_dicts_hold_every_weight_under_timms_names():
    e, twin = frozen("test_resnet"), frozen("test_resnet")
    load(e, file_of(original("test_resnet")))
    theirs = timm.create_model("test_resnet", num_classes=0).state_dict()
    assert set(e.state_dict()) == {f"backbone.{name}" for name in theirs} == set(plain_state_dict(e))
    live = dict(e.named_buffers())
    assert all(name in live and live[name].data_ptr() == t.data_ptr() for name, t in e.state_dict().items())
    load_plain_state_dict(twin, plain_state_dict(e))
    assert torch.equal(twin(source(2)), e(source(2)))


def test_it_computes_under_autocast():
    e = frozen("test_vit", 64)
    x = source(2, 64)
    expected = e(x)
    with torch.autocast("cpu", torch.bfloat16):
        z = e(x)
    assert not torch.equal(z.float(), expected)
    torch.testing.assert_close(z.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert all(tensor.dtype == torch.float32 for tensor in e.state_dict().values())


def test_poses_are_refused():
    e, x = frozen("test_vit"), source(1)
    for told in ((torch.zeros(1, 4), None), (None, torch.ones(1, dtype=torch.bool))):
        with pytest.raises(ValueError, match="poses"):
            e(x, *told)


def test_a_wrong_model_is_an_error_with_fields() -> None:
    wrong = "vit_bas_patch16_224"
    with pytest.raises(UnsuitableModelError) as caught:
        FrozenEncoder(model=wrong, image_size=SIDE)
    got, allowed = caught.value.got, caught.value.allowed
    assert got == wrong and allowed.startswith("timm's models, such as ") and "vit_base_patch16_224" in allowed
    fields = {"arch": "pretrained", "model": wrong, "weights": "file.safetensors", "weights_sha256": "a" * 64}
    config = with_fields(load_config("demo"), {f"encoder.{name}": value for name, value in fields.items()})
    with pytest.raises(UserError) as refused:
        build_model(config)
    error = refused.value
    assert (error.field, error.got, error.allowed, error.remedy) == (
        "encoder.model", wrong, allowed, "name a timm model",
    )  # fmt: skip
    with pytest.raises(UserError) as refused:
        TimmEncoder(wrong, None, None).configuration()
    error = refused.value
    assert (error.field, error.got, error.allowed) == ("--encoder", f"timm:{wrong}", allowed)
