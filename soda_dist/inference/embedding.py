"""Embeddings of many images as one file: streamed over a pool, resumed after a kill. No labels, no shards needed."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.data.views.decode import explain_unreadable
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import encode_views, not_finite
from soda_dist.evaluation.model_sources import Checkpoint, Exported, ModelSource
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.evaluation.views import EvaluationViews, central_views, pose_columns
from soda_dist.inference.embedding_files import NAMES, Embeddings, check_format, stored_address, write_embeddings
from soda_dist.inference.image_sets import ImageSet, Read, Reader, open_images
from soda_dist.inference.loading import model_source
from soda_dist.inference.model import for_encoder
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.method import Method
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say
from soda_dist.training.context import chosen_device

SHOWN = 3
"""Failed files that the last line names."""
Item = TypeVar("Item")


def embed(
    encoder: str | PathLike[str],
    images: str | PathLike[str],
    out: str | PathLike[str],
    *,
    split: str | None = None,
    step: int | None = None,
    ema: bool = True,
    weights: str | None = None,
    weights_sha256: str | None = None,
    workers: int = 0,
    device: str | torch.device | None = None,
    pool: Pool | None = None,
    say: Say = print,
) -> str:
    """Encode all images at `images` and write names, embeddings and errors to the file `out`; return its URI.

    Images that cannot be read have no embedding and the reason as their error. Finished pieces lie in `OUT.parts`
    until the end, so the same call resumes after a kill; where `out` is complete, it does nothing.

    Args:
        encoder, step, ema, weights, weights_sha256: as of `load`.
        images: a folder of image files at any depth, a .zip or .tar of them, or a prepared data set; local or a URI.
        out: ends in one of `embedding_files.FORMATS`.
        split: of a prepared data set; None = its only one.
        workers: processes that share the work and this machine's cores; 0 = this process.
        device: as of `load`.
        pool: in place of workers and device, such as a pool of Ray actors.
        say: shows progress, and at the end how many images failed.

    Raises:
        UserError: no encoder, no images, none that can be read, an unknown format, or an output that cannot be written
            or holds something else.
    """
    encoder, images, out = fspath(encoder), fspath(images), fspath(out)
    check_format(out)
    own = _own_pool(workers, device) if pool is None else pool
    source = model_source(encoder, step=step, ema=ema, weights=weights, weights_sha256=weights_sha256)
    config = for_encoder(_checked(source, encoder))
    found = open_images(images, split, tuple(pose_columns(config)), say)
    facts = {"weights": source.digest(), "config": _facts(config), **found.facts}
    place, (folder, name) = address(facts), locate(out)
    if _is_done(folder, name, place):
        say(f"already finished: {found.rows:,} images")
        return folder.file_uri(name)
    parts = folder.child(f"{name}.parts")
    parts.write_json("facts.json", facts)  # fails before the work if nothing can be written here
    done = parts.child(place)
    threads = max(1, (os.cpu_count() or 1) // workers) if workers else None
    with own.with_state(partial(load_embedder, source, config, found.reader, threads)) as crew:
        store(crew, done, embed_piece, found.pieces, say, "embeddings")
    say(_joined(done, found, folder, name, place))
    parts.remove_tree("")
    return folder.file_uri(name)


def _own_pool(workers: int, device: str | torch.device | None) -> LocalPool:
    if workers < 0:
        raise UserError("--workers", workers, ">= 0", "0 works in this process")
    return LocalPool(workers, device=str(chosen_device(device)))


def _checked(source: ModelSource, encoder: str) -> RunConfig:
    """The configuration of a source that has an encoder."""
    config = source.configuration()
    if isinstance(source, Checkpoint | Exported) and config.method not in ("soda", "encdec"):
        got = f"{encoder}, a model of method {config.method}, which has no encoder"
        raise UserError("--encoder", got, "methods soda and encdec, an encoder's file, or timm:NAME", "choose another")
    return config


def _facts(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"data": {"source_size", "eval_resize", "pose"}}) | {
        "precision": config.train.precision,
        "batch": config.evaluation.batch,
    }


def _is_done(folder: Folder, name: str, place: str) -> bool:
    """Whether the output is there; a `UserError` if it holds something else."""
    if folder.is_local and Path(folder.uri, name).is_dir():
        raise UserError("--out", f"{folder.file_uri(name)}, a folder", "a file", "name a file")
    stored = stored_address(folder, name)
    if stored not in (None, place):
        got = f"{folder.file_uri(name)}, which exists and was not made by this command from these images"
        raise UserError("--out", got, "a new file, or the unfinished one of the same command", "remove it or rename")
    return stored is not None


@dataclass
class Embedder:
    """A worker's state."""

    model: Method | EncoderAlone
    config: RunConfig
    reader: Reader
    device: torch.device


def load_embedder(source: ModelSource, config: RunConfig, reader: Reader, threads: int | None, device: str) -> Embedder:
    """Load the network: the set-up of a worker; `threads`: of its process, None = as they are."""
    if threads is not None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
    model = source.load().to(device).eval().requires_grad_(False)
    return Embedder(model, config, reader, torch.device(device))


def embed_piece(state: Embedder, piece: Any) -> pa.Table:
    """Read, decode and encode a piece, a worker's job: columns NAMES, a null embedding beside each error."""
    batches = ahead(_seen(state, read) for read in state.reader.read(piece, state.config.evaluation.batch))
    return pa.concat_tables([_encoded(state, read, seen) for read, seen in batches])


def _seen(state: Embedder, read: Read) -> tuple[Read, EvaluationViews]:
    return read, central_views(read.table, state.config, target=False)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def _encoded(state: Embedder, read: Read, seen: EvaluationViews) -> pa.Table:
    z = encode_views(state.model, seen, state.device).numpy()
    if bad := not_finite(z[seen.ok]):
        got = f"{bad} embeddings that are not finite, of images such as {read.names[0]}"
        raise UserError("--encoder", got, "a run that did not diverge", "choose another step")
    images = read.table["image"]
    errors = [
        None if ok else problem or explain_unreadable(image.as_py())
        for ok, problem, image in zip(seen.ok.tolist(), read.problems, images, strict=True)
    ]
    columns = (pa.array(read.names, pa.string()), _vectors(z, ~seen.ok), pa.array(errors, pa.string()))
    return pa.table(dict(zip(NAMES, columns, strict=True)))


def _vectors(z: NDArray[np.float32], missing: NDArray[np.bool_]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1], mask=pa.array(missing))


def _joined(done: Folder, found: ImageSet, folder: Folder, name: str, place: str) -> str:
    """Write the output from the pieces; return the line that says what it holds."""
    failed: list[str] = []
    count = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal count
        for piece in found.pieces:
            table = load(done, piece)
            for row in table.filter(table["error"].is_valid()).select(["name", "error"]).to_pylist():
                count += 1
                failed.extend([f"{row['name']} ({row['error']})"] if len(failed) < SHOWN else [])
            yield table
        if count == found.rows:
            got = f"{count:,} images that cannot be read, such as {failed[0]}"
            raise UserError("--images", got, "readable images", "check the URI")

    write_embeddings(folder, name, Embeddings(tables(), found.rows, place), f"{name}.parts")
    line = f"{found.rows:,} images, {count:,} without an embedding"
    return line + (f": {', '.join(failed)}{' ...' * (count > SHOWN)}" if count else "")
