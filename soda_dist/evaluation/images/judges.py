"""Published networks that judge images, in actors: LPIPS of pairs, Inception's features and their moments."""

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
from soda_dist.evaluation.context import Subject
from soda_dist.evaluation.images.generated_sets import Members
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.piece_cache import load
from soda_dist.evaluation.worker import Models
from soda_dist.metrics import inception, perceptual
from soda_dist.metrics.distributions import Moments, merge, moments
from soda_dist.parallel.progress import Progress

Side = Literal["image", "target"]


def check_weights(config: RunConfig, name: Literal["inception", "lpips"]) -> None:
    """A `UserError` if the network's weights are not named, or not where they are said to be."""
    weights: Weights = getattr(config.evaluation, name)
    field = f"evaluation.{name}.weights"
    if weights.weights is None:
        raise UserError(field, "nothing", "a file or URI", f"download {_url(weights)} and say where it is")
    folder, file = locate(weights.weights)
    if not folder.exists(file):
        raise UserError(field, weights.weights, "an existing file", f"download {_url(weights)} to there")


def _url(weights: Weights) -> str:
    return perceptual.PUBLISHED_URLS[weights.net] if isinstance(weights, Lpips) else inception.PUBLISHED_URL


def _published(weights: Weights, digest: str) -> bool:
    if isinstance(weights, Lpips):
        return perceptual.is_published(digest, net=weights.net)
    return inception.is_published(digest)


@dataclass(frozen=True)
class Judge:
    """A network with what a result says about it."""

    net: nn.Module
    facts: dict[str, Any]


def judge_of(models: Models, name: Literal["inception", "lpips"]) -> Judge:
    """The network, read once by an actor.

    Raises:
        UserError: the file is not the published one and no digest allows it, or not what it should be.
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


def facts_of(models: Models, name: Literal["inception", "lpips"]) -> dict[str, Any]:
    """What a result says about the weights; the work of an actor."""
    return judge_of(models, name).facts


@dataclass(frozen=True)
class Look:
    """A piece of a drawn set that is looked at."""

    folder: Folder
    members: Members
    side: Side
    keep_features: bool

    def images(self) -> NDArray[np.uint8]:
        """The readable members': uint8 [n, h, w, 3]."""
        table = load(self.folder, self.members, ["ok", self.side])
        column = table.filter(table.column("ok")).column(self.side)
        return images_of(column) if len(column) else np.zeros((0, 1, 1, 3), np.uint8)


def lpips_scores(subject: Subject, folder: Folder, pieces: Sequence[Members]) -> NDArray[np.float64]:
    """LPIPS between image and target of each readable member, float64 [n], in the order of members."""
    looks = [Look(folder, piece, "image", False) for piece in pieces]
    progress = Progress(subject.say, "LPIPS", "images", sum(piece.rows for piece in pieces))
    found: dict[int, NDArray[np.float64]] = {}
    for number, scores in subject.crew.share_out(_lpips, looks, progress.tick):
        found[number] = scores
        progress.add(pieces[number].rows)
    progress.close()
    return np.concatenate([found[number] for number in range(len(looks))])


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
    subject: Subject, folder: Folder, pieces: Sequence[Members], side: Side, keep: int
) -> tuple[Moments, Tensor]:
    """Moments of Inception's features over a set's readable members, and the features of the first `keep` members.

    Actors add up what they see, in float64, and hand over their sums at the end: for FID nothing else travels. What a
    lost actor had summed up is looked at again by others.
    """
    looks = [Look(folder, piece, side, piece.first < keep) for piece in pieces]
    what = f"Inception's features of {pieces[0].of.kind if side == 'image' else 'real images'}"
    progress = Progress(subject.say, what, "images", sum(piece.rows for piece in pieces))
    parts: dict[str, Moments] = {}
    features: dict[int, NDArray[np.float32]] = {}
    summed: set[str] = set()
    while todo := [look for look in looks if look.members.file not in summed]:
        for number, seen in subject.crew.share_out(_sum_up, todo, progress.tick):
            features[todo[number].members.first] = seen
            progress.add(todo[number].members.rows)
        for files, part in subject.crew.each(_hand_over, None):
            if files:
                parts[min(files)] = part
                summed |= set(files)
    progress.close()
    total = moments(torch.zeros(0, inception.FEATURES))
    for name in sorted(parts):
        total = merge(total, parts[name])
    return total, torch.from_numpy(np.concatenate([features[first] for first in sorted(features)])[:keep])


_SUMS = "sums of Inception's features"


def _sum_up(models: Models, look: Look) -> NDArray[np.float32]:
    images, net = look.images(), judge_of(models, "inception").net
    rows = [np.zeros((0, inception.FEATURES), np.float32)]
    files, total = models.kept.get(_SUMS, ([], moments(torch.zeros(0, inception.FEATURES))))
    for at in range(0, len(images), models.config.evaluation.batch):
        found = inception.features(net, _tensor(images[at : at + models.config.evaluation.batch], models.device))
        total = merge(total, moments(found.cpu()))
        rows.append(found.cpu().numpy())
    models.kept[_SUMS] = ([*files, look.members.file], total)
    return np.concatenate(rows) if look.keep_features else rows[0]


def _hand_over(models: Models, _: None) -> tuple[list[str], Moments | None]:
    return models.kept.pop(_SUMS, ([], None))
