"""Weights are read when their digest is right and they are tensors alone; nothing in them ever runs."""

import hashlib
import io
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from soda_dist.errors import UserError
from soda_dist.weights import fill, read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was run",)


def saved(value: object, **settings: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def read(content: bytes) -> dict[str, Tensor]:
    return read_weights(content, hashlib.sha256(content).hexdigest().upper(), field="net.weights")


def refusal(content: bytes) -> UserError:
    with pytest.raises(UserError) as caught:
        read(content)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return caught.value


def test_both_formats_and_pytorchs_older_one_are_read():
    old = saved(TENSORS, _use_new_zipfile_serialization=False)
    for content in (save(TENSORS), saved(TENSORS), saved(nn.Linear(2, 2).state_dict() | TENSORS), old):
        found = read(content)
        assert set(found) >= set(TENSORS)
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("content", [saved({"x": Bomb()}), save(TENSORS), b""])
def test_nothing_is_parsed_before_the_digest_is_right(content, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("parsed"))
    monkeypatch.setattr("soda_dist.weights.load_tensors", lambda *a: pytest.fail("parsed"))
    with pytest.raises(UserError) as caught:
        read_weights(content, "0" * 64, field="net.weights")
    assert caught.value.field == "net.weights_sha256"
    assert "0" * 64 in str(caught.value) and hashlib.sha256(content).hexdigest() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bomb_goes_off_where_nothing_protects():
    with pytest.raises(pytest.fail.Exception, match="a pickle was run"):
        torch.load(io.BytesIO(saved({**TENSORS, "x": Bomb()})), weights_only=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4", "ignore:.*looks like a TorchScript archive")
@pytest.mark.parametrize(
    "content",
    [
        saved({**TENSORS, "x": Bomb()}),
        saved({**TENSORS, "x": Bomb()}, _use_new_zipfile_serialization=False),
        pickle.dumps(Bomb()),
        saved(nn.Linear(2, 2)),
        scripted(),
        saved({"state_dict": TENSORS}),
        saved([TENSORS["a.weight"]]),
        saved({1: torch.zeros(1)}),
        saved(TENSORS)[:-30],
        save(TENSORS)[:-1],
        save(TENSORS)[:20],
        b"",
        b"<html>no such file</html>",
        b"{" * 40,
    ],
)
def test_anything_but_tensors_by_name_is_refused(content):
    error = refusal(content)
    assert (error.field, error.allowed) == (
        "net.weights",
        "safetensors, or a PyTorch file of named tensors only",
    )
    assert f"got {len(content)} bytes" in str(error)


def test_filling_copies_values_and_converts_floats():
    own = {"a.weight": torch.zeros(2, 3), "a.count": torch.tensor(0)}
    fill(own, {**TENSORS, "a.weight": TENSORS["a.weight"].half()}, field="net.weights", network="the net")
    assert all(torch.equal(own[name], tensor) for name, tensor in TENSORS.items())
    assert own["a.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"a.weight": None}, "weights without a.weight;"),
        ({"b": torch.zeros(1)}, "weights with unknown b;"),
        ({"a.weight": torch.zeros(3, 2)}, "weights with another shape or kind of number in a.weight;"),
        ({"a.weight": torch.zeros(2, 3).int()}, "weights with another shape or kind of number in a.weight;"),
        ({"a.count": None, "b": torch.zeros(1)}, "weights without a.count and weights with unknown b;"),
        ({f"b{i}": torch.zeros(1) for i in range(7)}, "with unknown b0, b1, b2, b3, b4 and 2 more;"),
    ],
)
def test_tensors_that_are_not_the_networks_are_named_and_none_is_copied(changes, says):
    own = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    found = {name: tensor for name, tensor in {**TENSORS, **changes}.items() if tensor is not None}
    with pytest.raises(UserError) as caught:
        fill(own, found, field="net.weights", network="the net")
    assert says in str(caught.value) and caught.value.field == "net.weights"
    assert not any(tensor.any() for tensor in own.values())
