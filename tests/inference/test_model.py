"""Each call of a model against evaluation, against the method's own sampler, and against itself in other batches."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.diffusion.sampling import guided, sample
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.pieces import plan_pieces
from soda_dist.evaluation.views import addressed_noise, central_views
from soda_dist.evaluation.worker import load_models, readers
from soda_dist.inference import Cameras, load
from soda_dist.models.condition import Condition, join
from soda_dist.models.pixels import to_uint8
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from tests.inference.exports import exported

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (5, 20, 24, 3), np.uint8)
"""Uint8 [5, 20, 24, 3]."""


def test_latents_are_those_of_evaluation(small: Path, tmp_path: Path) -> None:
    """Of the test split's files, whatever form the images have."""
    run, data = open_folder(str(small / "run")), open_folder(str(small / "data"))
    model = load(run.uri, device="cpu")
    reader = ShardReader(data, read_manifest(data), "test")
    pieces = plan_pieces("test", reader.groups, None, model.config.evaluation.batch)
    models = load_models(Checkpoint(run, 6, True), data.uri, model.config, "cpu")
    found = collect(LocalPool(setup=Held(models)), tmp_path_folder(tmp_path), pieces, silent)
    files = [image for number in range(3) for image in reader.group(number, ["image"])["image"].to_pylist()]
    readable = [file for file in files if file != b"no image"]
    paths = [tmp_path / f"{number}.png" for number in range(len(readable))]
    for path, file in zip(paths, readable, strict=True):
        path.write_bytes(file)
    opened = [Image.open(BytesIO(file)) for file in readable]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in opened])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    forms = (paths, [f"file://{path}" for path in paths], opened, pixels, tensor, tensor.float() / 255)
    for images in (*forms, torch.from_numpy(pixels)):
        z = model.encode(images)
        assert z.dtype == torch.float32 and z.shape == (29, model.latent_dim) == (29, 12)
        np.testing.assert_allclose(z.numpy(), found.arrays["trained"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(z[0], z[1], atol=1e-3)


def tmp_path_folder(path: Path):
    return open_folder(str(path / "latents"))


@pytest.mark.parametrize("name", ["soda", "no layer modulation", "cross attention"])
def test_samples_are_those_of_the_methods_own_sampler(tmp_path: Path, name: str) -> None:
    """DDPM written out over the denoiser, with guidance, from the noise of the seed."""
    model = exported(tmp_path, name)
    method, z = model._models.method, model.encode(IMAGES[:2])

    def noise(step: int) -> torch.Tensor:
        return addressed_noise(model.config.seed, np.zeros(2, np.int64), 5, step, 16)

    masked = Condition(z=z, keep=torch.zeros(2, method.sections, dtype=torch.bool))
    predict = guided(method.denoise, Condition(z=z), masked, 3.0, join=join)
    with torch.no_grad():
        x = sample(
            predict, method.process, noise(0), method="ddpm", steps=4, variance="small", eta=0.0, clip=True,
            noise=lambda step: noise(step + 1),
        )  # fmt: skip
    drawn = model.sample(z, guidance=3.0, steps=4, seed=5)
    _same(drawn, to_uint8(x).numpy())
    for other in ({"seed": 6}, {"steps": 5}, {"guidance": 1.0}):
        assert np.abs(model.sample(z, **{"guidance": 3.0, "steps": 4, "seed": 5} | other).astype(int) - drawn).max() > 2


def _same(one: np.ndarray, other: np.ndarray) -> None:
    """Equal up to the last rounding."""
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("name", ["soda", "encdec", "pixels"])
def test_an_image_does_not_depend_on_its_batch(tmp_path: Path, name: str) -> None:
    model = exported(tmp_path, name, sampling={"steps": 2})
    z = model.encode(IMAGES)
    torch.testing.assert_close(torch.cat([model.encode(image) for image in IMAGES]), z, rtol=1e-4, atol=1e-5)
    drawn = model.sample(z)
    _same(np.concatenate([model.sample(row) for row in z.flip(0).numpy()]), drawn[::-1])
    _same(model.sample(z), drawn)
    _same(model.sample(torch.cat([z] * 4))[15:20], drawn)  # over the border of a chunk
    made = model.reconstruct(IMAGES)
    _same(np.concatenate([model.reconstruct(image) for image in IMAGES]), made)
    if name != "pixels":  # whose frame a latent does not hold
        _same(made, drawn)


def test_reconstructions_are_those_of_evaluation(tmp_path: Path, small_set: Path) -> None:
    model = exported(tmp_path, "palette")
    models = replace(model._models, reader=readers(str(small_set), model.config))
    inputs = replace(pick_inputs(models, 3), keys=np.zeros(3, np.int64))
    files = [models.reader["test"].group(n, ["image"])["image"].to_pylist() for n in range(3)]
    by_view = {central(file, model): file for group in files for file in group if file != b"no image"}
    (tmp_path / "images").mkdir()
    paths = []
    for number, source in enumerate(inputs.source[:, 0]):
        paths.append(tmp_path / f"images/{number}.png")
        paths[-1].write_bytes(by_view[source.tobytes()])
    expected = draw(models, SampleJob(inputs, model.config.sampling.guidance, 4, 0)).images
    _same(model.reconstruct(paths, seed=4), expected)


def central(file: bytes, model) -> bytes:
    import pyarrow as pa

    return central_views(pa.table({"image": [file]}), model.config).source[0].tobytes()


def test_the_ends_of_an_interpolation_are_the_samples_of_its_latents(tmp_path: Path) -> None:
    model = exported(tmp_path, "soda")
    a, b = model.encode(IMAGES[:2])
    row = model.interpolate(a, b, 5, steps=2, seed=2)
    assert row.shape == (5, 16, 16, 3)
    _same(row[[0, -1]], model.sample(torch.stack([a, b]), steps=2, seed=2))
    _same(row[2:3], model.sample(0.5 * (a + b), steps=2, seed=2))
    assert np.abs(row[0].astype(int) - row[-1]).max() > 2


def test_mixed_sections_are_those_of_the_other_latent(tmp_path: Path) -> None:
    model = exported(tmp_path, "soda", sampling={"steps": 2})
    a, b = model.encode(IMAGES[:2])
    of = model._models.method.denoiser.section_of
    assert model._models.method.sections == 3
    z = torch.where((of == 0) | (of == 2), b, a)
    _same(model.mix(a, b, sections=[0, 2], seed=1), model.sample(z, seed=1))
    _same(model.mix(a[None], b[None], []), model.sample(a))


def test_an_object_is_drawn_from_other_cameras(tmp_path: Path, solids: Path) -> None:
    """As evaluation draws it: the first view of an object as its source, two others as targets."""
    model = exported(tmp_path, "rays and a vector")
    data = open_folder(str(solids))
    reader = ShardReader(data, read_manifest(data), "test")
    table = reader.group(0, ["image", "camera_to_world", "intrinsics"]).slice(0, 3)
    seen = central_views(table, model.config)
    images = [np.asarray(Image.open(BytesIO(image)).convert("RGB")) for image in table["image"].to_pylist()]
    world = np.array(table["camera_to_world"].to_pylist()).reshape(3, 4, 4)
    inner = np.array(table["intrinsics"].to_pylist()).reshape(3, 3, 3)
    own, wanted = Cameras(world[:1], inner[:1]), Cameras(world[1:], inner[1:])
    drawn = model.views(images[0], wanted, source_cameras=own, seed=3)
    source, pose = seen.source[None, :1].repeat(2, 0), seen.pose[None, :1].repeat(2, 0)
    expected = draw(model._models, job(source, pose, seen.pose[1:], model, 3)).images
    _same(drawn, expected)
    z = model.encode(images, Cameras(world, inner))
    torch.testing.assert_close(z, model.network.encode(seen.sources(model.device)), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="cameras: got nothing for a model"):
        model.encode(images)
    with pytest.raises(UserError, match="source_cameras: got nothing"):
        model.views(images[0], wanted)
    with pytest.raises(UserError, match=r"cameras: got \[1, 4, 4\] and \[1, 3, 3\]; allowed: Cameras\(to_world \[3"):
        model.encode(images, own)
    with pytest.raises(UserError, match="call views"):
        model.sample(z)


def job(source, source_pose, pose, model, seed) -> SampleJob:
    from soda_dist.evaluation.images.sampling import SampleInputs

    target = np.zeros((len(source), 16, 16, 3), np.uint8)
    inputs = SampleInputs(np.zeros(len(source), np.int64), source, source_pose, target, pose)
    return SampleJob(inputs, model.config.sampling.guidance, seed, 0)


def test_images_without_a_source(tmp_path: Path) -> None:
    for name in ("unconditional", "soda"):
        model = exported(tmp_path / name, name, sampling={"steps": 2})
        drawn = model.sample(count=3, seed=1)
        assert drawn.shape == (3, 16, 16, 3)
        assert len(np.unique(drawn.reshape(3, -1), axis=0)) == 3
        _same(model.sample(count=18, seed=1)[:3], drawn)
        assert np.abs(model.sample(count=3, seed=2).astype(int) - drawn).max() > 2
    _same(model.sample(torch.randn(1, 12), guidance=0.0, seed=1), drawn[:1])


LACKS = {
    # method, call -> what the one line says
    ("palette", "encode"): "encode: got method palette, .*allowed: a model with an encoder",
    ("unconditional", "encode"): "allowed: a model with an encoder",
    ("unconditional", "sample"): "sample: got method unconditional, .*draws from z",
    ("unconditional", "reconstruct"): "a method with a source",
    ("palette", "sample"): "draws from z",
    ("palette", "free"): "soda with a bottleneck, or unconditional",
    ("no bottleneck", "sample"): "whose z is one vector",
    ("no layer modulation", "mix"): "mix: got .*whose z has sections",
    ("encdec", "free"): "soda with a bottleneck, or unconditional",
    ("encdec", "guidance"): "guidance, steps: got 2.0, None for method encdec",
    ("soda", "views"): "views: got .*allowed: a model of data.pose=cameras",
    ("alone", "sample"): "sample: got an encoder alone",
    ("alone", "reconstruct"): "reconstruct: got an encoder alone",
    ("alone", "views"): "views: got an encoder alone",
}


@pytest.mark.parametrize(("name", "call"), LACKS)
def test_what_a_model_lacks_is_refused_in_one_line(small: Path, tmp_path: Path, name: str, call: str) -> None:
    alone = str(small / "run/checkpoints/000000006/encoder.safetensors")
    model = load(alone, device="cpu") if name == "alone" else exported(tmp_path, name)
    z = torch.zeros(1, 12)
    calls = {
        "encode": lambda: model.encode(IMAGES),
        "sample": lambda: model.sample(z),
        "free": model.sample,
        "guidance": lambda: model.sample(z, guidance=2.0),
        "reconstruct": lambda: model.reconstruct(IMAGES),
        "mix": lambda: model.mix(z, z, [0]),
        "views": lambda: model.views(IMAGES, Cameras(np.eye(4)[None], np.eye(3)[None])),
    }
    with pytest.raises(UserError, match=LACKS[name, call]) as caught:
        calls[call]()
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    model = exported(tmp_path, "soda")
    (tmp_path / "text.png").write_text("no image")
    z = model.encode(IMAGES)
    wrong = {
        "images: got none": lambda: model.encode([]),
        "images: got int": lambda: model.encode(7),
        r"images: got float64 \[4, 4, 3\]": lambda: model.encode(np.zeros((4, 4, 3))),
        r"images: got uint8 \[4, 4\]": lambda: model.encode(np.zeros((4, 4), np.uint8)),
        r"a float tensor with values in -1..1": lambda: model.encode(torch.linspace(-1, 1, 48).view(3, 4, 4)),
        "missing.png; allowed: an existing file": lambda: model.encode(tmp_path / "missing.png"),
        r"text.png \(not an image\)": lambda: model.encode([IMAGES[0], str(tmp_path / "text.png")]),
        "a folder; allowed: a file": lambda: model.encode(str(tmp_path)),
        r"z: got torch.float32 \[5, 11\]; allowed: float \[n, 12\]": lambda: model.sample(z[:, 1:]),
        "z: got values that are not finite": lambda: model.sample(z * float("inf")),
        "sampling.guidance: got -1": lambda: model.sample(z, guidance=-1),
        "sampling.steps: got 51": lambda: model.sample(z, steps=51),
        "seed: got -1": lambda: model.sample(z, seed=-1),
        "count: got 2 with z": lambda: model.sample(z, count=2),
        "count: got 0": lambda: model.sample(count=0),
        "interpolate: got 5 and 5": lambda: model.interpolate(z, z),
        "count: got 1; allowed: >= 2": lambda: model.interpolate(z[0], z[1], 1),
        "method: got cubic": lambda: model.interpolate(z[0], z[1], method="cubic"),
        "sections: got 3; allowed: 0..2": lambda: model.mix(z, z, [3]),
        "mix: got 5 and 1": lambda: model.mix(z, z[0], [0]),
        "cameras for a model of data.pose=none": lambda: model.encode(IMAGES, Cameras(np.eye(4), np.eye(3))),
    }
    for message, call in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
