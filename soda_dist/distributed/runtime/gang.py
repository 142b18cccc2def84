"""Gangs of Ray actors: jobs that run at the same time and talk to each other.

They share a placement group: with some of them running, the others could wait for what these hold. Ray restarts none
of them, since a member alone cannot rejoin the collectives of its peers: a lost member ends the gang, and a new gang
starts from the beginning.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from soda_dist.errors import UserError
from soda_dist.parallel.pool import Meet, Piece, Result, Seat
from soda_dist.parallel.progress import Say

LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError)
"""What Ray says of actors that are gone, as opposed to what a job raised."""
MAX_LOSSES = 3
"""Gangs that one work may lose before it is given up."""
LOSS_KNOWN_AFTER_S = 30.0
"""The longest that Ray takes to report a lost actor; its peers notice at once."""


def run_gang(
    job: Callable[[Seat, Piece], Result],
    pieces: Sequence[Piece],
    meet: Meet,
    *,
    needs: dict[str, float],
    start_timeout_s: float,
    say: Say,
) -> Result:
    """As `Pool.gang`; `needs` are each member's logical resources."""
    for losses in range(1, MAX_LOSSES + 1):
        group = _room(len(pieces), needs, start_timeout_s)
        try:
            return _run_once(group, job, pieces, meet, needs)
        except RayTaskError as error:
            raise error.cause from None
        except LOST as error:
            if losses == MAX_LOSSES:
                raise RuntimeError(f"{MAX_LOSSES} gangs were lost, the last one so: {error}") from error
            say("a worker of the gang died; starting again with a new gang")
        finally:
            remove_placement_group(group)
    raise AssertionError("a loop that returns or raises")


def _room(size: int, needs: dict[str, float], start_timeout_s: float) -> PlacementGroup:
    group = placement_group([needs] * size, strategy="PACK")
    if not group.wait(start_timeout_s):
        remove_placement_group(group)
        asked = ", ".join(f"{count:g} {name}" for name, count in needs.items())
        got = f"no room for {size} workers with {asked} each within {start_timeout_s:g} s"
        raise UserError("probe workers", got, "what the cluster can start", "ask for fewer, or add nodes")
    return group


class _Member:
    """One member; the first keeps what the others need to find it."""

    def __init__(self, rank: int, size: int, device: str) -> None:
        self._rank, self._size, self._device = rank, size, device
        self._kept: Any = None

    def meet(self, meet: Meet) -> Any:
        told, self._kept = meet(ray.util.get_node_ip_address(), self._size)
        return told

    def do(self, job: Callable[[Seat, Piece], Result], piece: Piece, meeting: Any) -> Result:
        return job(Seat(self._rank, self._size, self._device, meeting, self._kept), piece)


def _run_once(
    group: PlacementGroup,
    job: Callable[[Seat, Piece], Result],
    pieces: Sequence[Piece],
    meet: Meet,
    needs: dict[str, float],
) -> Result:
    actor: Any = ray.remote(_Member)
    device = "cuda" if "GPU" in needs else "cpu"
    members = [
        actor.options(
            **{f"num_{name.lower()}s": count for name, count in needs.items()},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(rank, len(pieces), device)
        for rank in range(len(pieces))
    ]
    try:
        meeting = ray.get(members[0].meet.remote(meet))
        return _first_result([m.do.remote(job, piece, meeting) for m, piece in zip(members, pieces, strict=True)])
    finally:
        for member in members:
            ray.kill(member)


def _first_result(calls: list[Any]) -> Any:
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
    return ray.get(calls[0])
