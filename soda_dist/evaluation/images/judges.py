"""Published networks that judge images: LPIPS of pairs, Inception's features and their moments."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from soda_dist.config.evaluation import Lpips, Weights
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.generated_sets import SetPiece
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.piece_cache import load
from soda_dist.evaluation.worker import Models
from soda_dist.metrics import inception, perceptual
from soda_dist.metrics.distributions import Moments, merge, moments
from soda_dist.parallel.pool import in_order
from soda_dist.parallel.progress import Progress

Side = Literal["image", "target"]


def check_weights(config: RunConfig, name: str) -> None:
    """Raise a `UserError` if the network's weights are not named or not found."""
    weights: Weights = getattr(config.evaluation, name)
    field = f"evaluation.{name}.weights"
    if weights.weights is None:
        raise UserError(field, "nothing", "a file or URI", f"download {_url(weights)} and name the file")
    folder, file = locate(weights.weights)
    if not folder.exists(file):
        raise UserError(field, weights.weights, "an existing file", f"download {_url(weights)} to that place")


def _url(weights: Weights) -> str:
    return perceptual.PUBLISHED_URLS[weights.net] if isinstance(weights, Lpips) else inception.PUBLISHED_URL


def _published(weights: Weights, digest: str) -> bool:
    if isinstance(weights, Lpips):
        return perceptual.is_published(digest, net=weights.net)
    return inception.is_published(digest)


@dataclass(frozen=True)
class Judge:
    """A network, and a result's record of its weights."""

    net: nn.Module
    facts: dict[str, Any]


def judge_of(models: Models, name: str) -> Judge:
    """Return the network, loaded once by each worker.

    Raises:
        UserError: the file is not the published one and no digest allows it, or not this network's.
    """
    if name not in models.kept:
        weights: Weights = getattr(models.config.evaluation, name)
        assert weights.weights is not None
        folder, file = locate(weights.weights)
        content = folder.read(file)
        digest = hashlib.sha256(content).hexdigest()
        wanted = weights.weights_sha256 or digest
        if weights.weights_sha256 is None and not _published(weights, digest):
            got = f"a file of digest {digest}"
            remedy = f"download {_url(weights)}, or set evaluation.{name}.weights_sha256 to allow this file"
            raise UserError(f"evaluation.{name}.weights", got, "the published weights", remedy)
        if isinstance(weights, Lpips):
            net = perceptual.load_lpips(content, wanted, net=weights.net)
        else:
            net = inception.load_inception(content, wanted)
        facts = {"sha256": digest, "published": _published(weights, digest)}
        if isinstance(weights, Lpips):
            facts["net"] = weights.net
        models.kept[name] = Judge(net.to(models.device), facts)
    return models.kept[name]


def facts_of(models: Models, name: str) -> dict[str, Any]:
    """Return a result's record of the weights; a worker's job."""
    return judge_of(models, name).facts


@dataclass(frozen=True)
class Look:
    """One side of a piece of a drawn set."""

    folder: Folder
    members: SetPiece
    side: Side

    def images(self) -> NDArray[np.uint8]:
        """Load the readable members' images, uint8 [n, h, w, 3]."""
        table = load(self.folder, self.members, ["ok", self.side])
        column = table.filter(table.column("ok")).column(self.side)
        return images_of(column) if len(column) else np.zeros((0, 1, 1, 3), np.uint8)


def lpips_scores(context: Context, folder: Folder, pieces: Sequence[SetPiece]) -> NDArray[np.float64]:
    """Return LPIPS between image and target of each readable member, float64 [n], in the order of members."""
    looks = [Look(folder, piece, "image") for piece in pieces]
    progress = Progress(context.say, "LPIPS", "images", units=lambda look: look.members.rows)
    return np.concatenate(context.workers.map(_lpips, looks, progress))


def _lpips(models: Models, look: Look) -> NDArray[np.float64]:
    table = load(look.folder, look.members, ["ok", "image", "target"])
    table = table.filter(table.column("ok"))
    if not len(table):
        return np.zeros(0)
    net = judge_of(models, "lpips").net
    pair = [_tensor(images_of(table.column(side)), models.device).float() / 127.5 - 1 for side in ("image", "target")]
    try:
        return perceptual.lpips_distance(net, *pair).double().cpu().numpy()
    except perceptual.ImagesTooSmallError as error:
        got, allowed = f"images of {list(error.size)}", f"images of at least {error.smallest} pixels a side"
        raise UserError("evaluation.lpips", got, allowed, "unset its weights to skip LPIPS") from None


def _tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()


def set_moments(
    context: Context, folder: Folder, pieces: Sequence[SetPiece], side: Side, keep: int
) -> tuple[Moments, Tensor]:
    """Return the moments of Inception's features of a set, and the features of its first `keep` members.

    The moments are summed here in float64 and in the order of the pieces, so that no number depends on the workers.
    """
    looks = [Look(folder, piece, side) for piece in pieces]
    what = f"Inception's features of {pieces[0].image_set.kind if side == 'image' else 'real images'}"
    progress = Progress(context.say, what, "images", units=lambda look: look.members.rows)
    total, kept = moments(torch.zeros(0, inception.FEATURES)), [np.zeros((0, inception.FEATURES), np.float32)]
    for look, batches in zip(looks, in_order(context.workers.completed(_features, looks, progress)), strict=True):
        for features in batches:
            total = merge(total, moments(torch.from_numpy(features)))
        if look.members.first < keep:
            kept += batches
    return total, torch.from_numpy(np.concatenate(kept)[:keep])


def _features(models: Models, look: Look) -> list[NDArray[np.float32]]:
    """Compute the features of the readable members, [n, 2048] for each batch; a worker's job."""
    images, net, batch = look.images(), judge_of(models, "inception").net, models.config.evaluation.batch
    starts = range(0, len(images), batch)
    return [inception.features(net, _tensor(images[at : at + batch], models.device)).cpu().numpy() for at in starts]
