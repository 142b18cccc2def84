"""The linear probe over several actors, each with a part of the training rows; the probe is that of one with all."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from soda_dist.distributed.runtime.actor_pool import LOST, MAX_LOSSES
from soda_dist.errors import UserError
from soda_dist.metrics.classification import Labelled, Scores
from soda_dist.metrics.probe import fit_probe, probe_scores
from soda_dist.parallel.progress import Say
from soda_dist.training.collectives import ProcessGroupContext

COLLECTIVE_TIMEOUT_S = 600.0
LOSS_KNOWN_AFTER_S = 30.0
"""Longest that Ray takes to tell that an actor is gone; its peers know at once."""


@dataclass(frozen=True)
class Rows:
    """References into Ray's object store."""

    latents: Any
    """To an array [n, D], or [passes, n, D] of training rows, as `fit_probe` takes them; any real dtype."""
    labels: Any
    """To int64 [n] or [n, A]."""
    plain: Any = None
    """To an array of the same training images without crops and flips, as `fit_probe` takes it."""


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The actors that fit a probe together.

    Attributes:
        workers: how many.
        cpus, gpus: of each; with GPUs they talk over NCCL, else over gloo.
        start_timeout_s: longest wait for room for all of them at once.
    """

    workers: int
    cpus: float
    gpus: float
    start_timeout_s: float


def evaluate_in_parallel(
    train: Sequence[Rows], test: Rows, gang: Gang, say: Say, *, classes: int, seed: int, **settings: Any
) -> Scores:
    """What `metrics.probe.evaluate` gives for all training rows, their parts being dealt to the actors in order.

    A worker reads its own parts alone, and the first one the test rows. A lost actor ends its gang, which a new one
    follows from the beginning: a fit lasts minutes, and nothing has to be stored.

    Args:
        train: parts of the training rows in their order, fewer or more than workers.
        settings: the others of `fit_probe`.

    Raises:
        UserError: the cluster had no room for the whole gang in time.
        RuntimeError: gangs were lost one after another.
        ValueError: as `fit_probe`.
    """
    dealt = [[train[i] for i in places] for places in np.array_split(np.arange(len(train)), gang.workers)]
    shape = _empty_like(train[0])
    for losses in range(1, MAX_LOSSES + 1):
        group = _room(gang)
        try:
            return _fit_once(group, gang, dealt, shape, test, {"classes": classes, "seed": seed, **settings})
        except RayTaskError as error:
            raise error.cause from None
        except LOST as error:
            if losses == MAX_LOSSES:
                raise RuntimeError(f"{MAX_LOSSES} gangs of actors were lost, the last one so: {error}") from error
            say("an actor of the probe was lost; a new gang begins again")
        finally:
            remove_placement_group(group)
    raise AssertionError("a loop that returns or raises")


def _room(gang: Gang) -> PlacementGroup:
    """Room for all actors at once: some of them would wait for the others while holding what these need."""
    bundle = {"CPU": gang.cpus} | ({"GPU": gang.gpus} if gang.gpus else {})
    group = placement_group([bundle] * gang.workers, strategy="PACK")
    if not group.wait(gang.start_timeout_s):
        remove_placement_group(group)
        asked = ", ".join(f"{count:g} {name}" for name, count in bundle.items())
        got = f"no room for {gang.workers} workers with {asked} each within {gang.start_timeout_s:g} s"
        raise UserError("probe workers", got, "what the cluster can start", "ask for fewer, or add nodes")
    return group


def _fit_once(
    group: PlacementGroup, gang: Gang, dealt: list[list[Rows]], shape: Rows, test: Rows, settings: dict[str, Any]
) -> Scores:
    actor: Any = ray.remote(_Member)
    members = [
        actor.options(
            num_cpus=gang.cpus,
            num_gpus=gang.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(rank, gang.workers, gang.gpus > 0)
        for rank in range(gang.workers)
    ]
    try:
        address = ray.get(members[0].open.remote())
        calls = [
            member.fit.remote(address, parts or [shape], test if rank == 0 else None, settings)
            for rank, (member, parts) in enumerate(zip(members, dealt, strict=True))
        ]
        return _first_result(calls)
    finally:
        for member in members:
            ray.kill(member)


def _first_result(calls: list[Any]) -> Scores:
    """The first call's result once all have ended; else the first failure, and of a lost actor rather than its peers'.

    Whoever fails first is heard first, since the others wait for it in a collective.
    """
    left = list(calls)
    while left:
        done, left = ray.wait(left)
        try:
            ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, RuntimeError):  # of a collective, perhaps, that a peer has left
                for other in ray.wait(left, num_returns=len(left), timeout=LOSS_KNOWN_AFTER_S)[0] if left else ():
                    with suppress(RayTaskError):
                        ray.get(other)
            raise
    scores: Scores = ray.get(calls[0])
    return scores


def _empty_like(rows: Rows) -> Rows:
    """No rows, of the given ones' width, dtype and number of labels: the part of a worker for which none is left."""
    slim = ray.remote(num_cpus=0)(_without_rows)
    plain = None if rows.plain is None else slim.remote(rows.plain, -2)
    return Rows(slim.remote(rows.latents, -2), slim.remote(rows.labels, 0), plain)


def _without_rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.take(array, range(0), axis=axis)


class _Member:
    """One worker: a process group, its rows, and the fit."""

    def __init__(self, rank: int, world: int, on_gpu: bool) -> None:
        self._rank, self._world = rank, world
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._store: Any = None

    def open(self) -> tuple[str, int]:
        """Of the first worker: where the others find it."""
        host = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(host, 0, self._world, True, self._timeout, wait_for_workers=False)
        return host, self._store.port

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=COLLECTIVE_TIMEOUT_S)

    def fit(
        self, address: tuple[str, int], parts: list[Rows], test: Rows | None, settings: dict[str, Any]
    ) -> Scores | None:
        """Fits with the others; the scores, where there is a test set."""
        store = self._store or dist.TCPStore(*address, self._world, False, self._timeout)
        backend = "gloo" if self._device.type == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._world, timeout=self._timeout)
        own, plain = self._labelled(parts), self._plain(parts)
        together = ProcessGroupContext(self._device, None)
        probe = fit_probe(own.latents, own.labels, plain=plain, workers=together, **settings)
        scores = None if test is None else probe_scores(probe, self._labelled([test]), seed=settings["seed"])
        dist.barrier()  # the first worker holds the store that the others' groups need to the end
        return scores

    def _labelled(self, parts: Sequence[Rows]) -> Labelled:
        latents = [ray.get(part.latents) for part in parts]
        labels = [ray.get(part.labels) for part in parts]
        return Labelled(self._tensor(_joined(latents, -2)), self._tensor(_joined(labels, 0)))

    def _plain(self, parts: Sequence[Rows]) -> Tensor | None:
        arrays = [ray.get(part.plain) for part in parts if part.plain is not None]
        return self._tensor(_joined(arrays, -2)) if arrays else None

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the store's read-only arrays; nothing writes to them
            return torch.from_numpy(array).to(self._device)


def _joined(arrays: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
