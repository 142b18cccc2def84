"""The benchmark of embeddings: both sides make the same latents of the same files; its table names them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import DataLoader

from soda_dist.benchmarks import embed as benchmark
from soda_dist.benchmarks.embed import FileViews, measure_embed, write_files, write_model
from soda_dist.benchmarks.features import Initial, plain_latents
from soda_dist.config.load import dump_config
from soda_dist.inference import embed
from tests.evaluation.small_run import prepare
from tests.tiny import tiny_config


def test_both_sides_make_the_same_latents(tmp_path: Path) -> None:
    prepare(str(tmp_path / "data"), {"train": [[20, 20], [10]], "test": [[4]]}, {})
    config = tiny_config(evaluation={"batch": 16, "baselines": False, "max_train_images": 44})
    # The images have the size of a view, so that no resampling differs.
    config = config.model_copy(update={"data": config.data.model_copy(update={"source_size": 20})})
    files = write_files(str(tmp_path / "data"), config, tmp_path / "images")
    assert len(files) == len(set(files)) == 44
    encoder = write_model(config, tmp_path / "encoder")
    out = embed(encoder, str(tmp_path / "images"), str(tmp_path / "x.parquet"), device="cpu", say=lambda _: None)
    ours = np.stack(pq.read_table(out)["embedding"].to_pylist())
    theirs = plain_latents(Initial(config).load().encoder, iter(DataLoader(FileViews(files, config.data), 16)), config)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)


def test_a_small_run_of_it_names_its_sides(tmp_path: Path, monkeypatch) -> None:
    prepare(str(tmp_path / "data"), {"train": [[20]], "test": [[4]]}, {})
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config()))
    monkeypatch.setattr(benchmark, "WORKERS", (0,))
    said: list[str] = []
    (result,) = measure_embed(str(tmp_path / "tiny.yaml"), str(tmp_path / "data"), [], said.append)
    assert list(result["median"]) == ["embed", "DataLoader, num_workers=0"]
    assert result["unit"] == "images/s" and result["limit"] == 0.9 and result["ratio"] > 0
    assert said[0].startswith("20 files per round")
