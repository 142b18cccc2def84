"""Encoders that are evaluated without a run: a checkpoint's file, a model of timm; and what they are refused for."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save

from soda_dist.data.shards import write_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.data.views.pair_views import center_views
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.model_sources import Checkpoint, EncoderFile, TimmEncoder, encoder_source
from soda_dist.evaluation.pieces import plan_pieces
from soda_dist.evaluation.task_runner import evaluate, evaluate_encoder
from soda_dist.evaluation.worker import load_models
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from soda_dist.training.checkpoint import load_model
from tests.evaluation.small_run import small_data, train
from tests.tiny import tiny_config

MODEL = "test_resnet"
"""A small one of timm's, made for 160 px."""


@pytest.fixture(scope="module")
def weights(place: Path) -> tuple[str, str]:
    """A file of random weights of MODEL, and its digest."""
    torch.manual_seed(4)
    content = save(timm.create_model(MODEL, pretrained=False).state_dict())
    (place / "timm.safetensors").write_bytes(content)
    return str(place / "timm.safetensors"), hashlib.sha256(content).hexdigest()


def _latents(model_source, place: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    models = load_models(model_source, str(place / "data"), model_source.configuration(), "cpu")
    pieces = plan_pieces("test", models.reader["test"].groups, np.arange(10), 128)
    return collect(LocalPool(setup=Held(models)), open_folder(str(tmp_path / "latents")), pieces, silent).arrays


def test_an_encoders_file_gives_the_latents_of_its_run(place: Path, tmp_path: Path) -> None:
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    run = Checkpoint(open_folder(str(place / "run")), 6, ema=True)
    alone, whole = (_latents(model_source, place, tmp_path / str(n)) for n, model_source in enumerate((file, run)))
    for name in ("trained", "untrained", "pixels"):
        np.testing.assert_allclose(alone[name], whole[name], rtol=1e-5, atol=1e-6)


def test_a_model_of_timm_gives_timms_own_features(place: Path, tmp_path: Path, weights: tuple[str, str]) -> None:
    model_source = TimmEncoder(MODEL, *weights)
    config = model_source.configuration()
    model = timm.create_model(MODEL, pretrained=False, num_classes=0).eval()
    torch.manual_seed(4)
    model.load_state_dict(timm.create_model(MODEL, pretrained=False).state_dict(), strict=False)
    info = model.pretrained_cfg
    assert (config.data.source_size, config.data.eval_resize) == (160, pytest.approx(1 / info["crop_pct"], rel=1e-5))
    reader = load_models(model_source, str(place / "data"), config, "cpu").reader["test"]
    images = reader.group(0, ["image"]).column("image").to_pylist()
    views = center_views(images, size=160, resize=config.data.eval_resize)[0][1:]  # the first one is no image
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(info[name], dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model(((pixels - mean) / std).float()).numpy()
    np.testing.assert_allclose(_latents(model_source, place, tmp_path)["trained"], expected, rtol=1e-3, atol=1e-5)


def test_published_weights_are_read_from_the_cache_that_timm_keeps(
    place: Path, tmp_path: Path, weights: tuple[str, str], monkeypatch
) -> None:
    repository = timm.get_pretrained_cfg("test_resnet.r160_in1k").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / f"models--{repository}" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(Path(weights[0]).read_bytes())
    (tmp_path / f"models--{repository}" / "refs").mkdir()
    (tmp_path / f"models--{repository}" / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    published, given = TimmEncoder("test_resnet.r160_in1k", None, None), TimmEncoder(MODEL, *weights)
    assert published.digest() == given.digest()


def test_weights_out_of_reach_are_told_in_one_line(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"test_resnet, whose weights cannot be had .*--weights-sha256") as caught:
        TimmEncoder(MODEL, None, None).load()
    assert "\n" not in str(caught.value)


def test_an_encoder_alone_is_probed_as_its_run_is(place: Path, tmp_path: Path) -> None:
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    out = str(tmp_path / "out")
    found = evaluate_encoder(file, str(place / "data"), "probe,knn", out, overrides=["evaluation.probe.epochs=2"])
    ran = evaluate(str(place / "run"), str(place / "data"), "probe,knn", overrides=["evaluation.probe.epochs=2"])
    for task in ("probe", "knn"):
        assert found[task]["encoders"]["trained"]["estimates"] == ran[task]["encoders"]["trained"]["estimates"]
        assert open_folder(out).read_json(f"eval/0/{task}.json") == found[task]


def test_an_encoder_alone_gives_latents_of_images_without_labels(place: Path, tmp_path: Path) -> None:
    """The principal directions and the rows are those of the latents on storage, which lie where the result says."""
    data, out = open_folder(str(tmp_path / "data")), str(tmp_path / "out")
    manifest = small_data(tmp_path / "data").model_copy(update={"labels": {}, "main_label": None})
    write_manifest(data, manifest)
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    found = evaluate_encoder(file, data.uri, "latents", out, overrides=["evaluation.tools.directions=3"])["latents"]
    assert open_folder(out).read_json("eval/0/latents.json") == found
    tables = [pq.read_table(path) for path in sorted(Path(found["folders"]["train"]).glob("*.parquet"))]
    table = pa.concat_tables(tables)
    latents = np.stack(table.filter(table.column("ok")).column("vector/trained").to_pylist())
    assert latents.shape == (found["counts"]["train"], found["dimension"]) == (44, 12)
    variances = np.linalg.eigvalsh(np.cov(latents.T))[::-1][:3]
    np.testing.assert_allclose([each["sigma"] for each in found["directions"]], variances**0.5, rtol=1e-3)
    scores = evaluate_encoder(file, data.uri, "label_free", out)["label_free"]["encoders"]["trained"]
    assert 1 < scores["effective_rank"] < scores["dimension"] == 12
    for tasks in ("probe", "knn", "dci"):
        with pytest.raises(
            UserError, match=f"--tasks: got {tasks} of data without labels; allowed: label_free, latents; "
        ):
            evaluate_encoder(file, data.uri, tasks, out)
    with pytest.raises(UserError, match=r"got 13 with 44 training images .*; allowed: 1\.\.12"):
        evaluate_encoder(file, data.uri, "latents", out, overrides=["evaluation.tools.directions=13"])


@pytest.mark.parametrize(
    ("tasks", "overrides", "message"),
    [
        ("probe,fid", [], r"--tasks: got fid of an encoder alone; allowed: probe, knn"),
        ("probe", ["encoder.width=2"], r"override: got encoder.width=2; allowed: data.field=value, evaluation"),
        ("probe", ["evaluation.label=shape"], r"evaluation.label: got shape"),
    ],
)
def test_what_an_encoder_alone_cannot_do_is_refused(place: Path, tmp_path, tasks, overrides, message) -> None:
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    with pytest.raises(UserError, match=message):
        evaluate_encoder(file, str(place / "data"), tasks, str(tmp_path), overrides=overrides)


def test_wrong_encoders_are_told_in_one_line(place: Path, tmp_path: Path, weights: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="an existing file, or timm:NAME"):
        EncoderFile(str(tmp_path / "no.safetensors")).configuration()
    with pytest.raises(UserError, match=r"without config\.json beside it"):
        EncoderFile(weights[0]).configuration()
    (tmp_path / "config.json").write_bytes((place / "run/checkpoints/000000006/config.json").read_bytes())
    (tmp_path / "encoder.safetensors").write_bytes(Path(weights[0]).read_bytes())
    with pytest.raises(UserError, match=r"encoder\.safetensors .*missing"):
        EncoderFile(str(tmp_path / "encoder.safetensors")).load()
    with pytest.raises(UserError, match=r"timm:resnet_seventeen; allowed: timm's models"):
        TimmEncoder("resnet_seventeen", None, None).configuration()
    with pytest.raises(UserError, match="one of --weights and --weights-sha256"):
        encoder_source("timm:resnet18", "a", None)
    with pytest.raises(UserError, match="leave it out"):
        encoder_source("a.safetensors", "a", "b")


def test_weights_without_the_running_mean_are_those_that_training_goes_on_from(tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 3}, optim={"ema_decay": 0.9999})
    run = train(str(tmp_path), config)
    mean, live = (load_model(run, 3, ema=ema)[0] for ema in (True, False))
    digests = {Checkpoint(run, 3, ema).digest() for ema in (True, False)}
    assert len(digests) == 2
    moved = [float((a - b).abs().max()) for a, b in zip(mean.parameters(), live.parameters(), strict=True)]
    assert max(moved) > 1e-4, "in three steps the running mean has hardly left the beginning"
    from safetensors.torch import load_file

    state = {}
    for file in (tmp_path / "checkpoints/000000003").glob("state-*.safetensors"):
        state |= load_file(file)
    for name, parameter in live.named_parameters():
        stored = state[f"param/model.{name}/0"]
        assert torch.equal(parameter.flatten(), stored)
