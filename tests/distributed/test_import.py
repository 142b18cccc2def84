"""Imports through a real Ray cluster: one kind of archive, one of tables, one of loose files; the same bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from soda_dist.data.preparation import prepare
from soda_dist.data.storage.folder import open_folder
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import silent
from tests.data.preparation.test_importer import files_of, image_folders, jpeg
from tests.data.preparation.test_layouts import import_twice
from tests.data.written.layouts import small

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
ACTORS = 2


def actors() -> Pool:
    """As jobs/prepare_data.py makes it, but small."""
    from soda_dist.distributed.runtime.actor_pool import ActorPool

    return ActorPool(say=silent, actors=ACTORS)


@pytest.mark.parametrize(
    ("name", "place"), [("mpi3d", "s3_uri"), ("lsun deflated zip", "s3_uri"), ("celebahq", "tmp_path")]
)
def test_a_layout_is_imported_once(name: str, place: str, request: pytest.FixtureRequest) -> None:
    """Sources, options and rows' metadata reach the actors, and their lists and rejected rows come back."""
    with small():
        import_twice(name, str(request.getfixturevalue(place)), actors)


def test_the_same_import_gives_the_same_files_anywhere(new_bucket: Callable[[], str], tmp_path: Path) -> None:
    """By actors into S3, and in this process onto the disk; a row that cannot be read moves keys of later shards."""
    source = image_folders(str(tmp_path / "source"))
    source.write("n00000003/4.JPEG", jpeg(3, 4)[:-40])
    options = ("rows_per_group=8", "groups_per_shard=2")
    there = prepare("imagenet", source.uri, new_bucket(), options, actors())
    here = prepare("imagenet", source.uri, str(tmp_path / "data"), options)
    assert files_of(open_folder(there)) == files_of(open_folder(here))
    assert len(files_of(open_folder(here))) == 8 + 8 + 4


def test_pieces_are_made_a_few_at_a_time() -> None:
    """So that a large import's lists are not all in Ray's object store at once."""
    made, done = [], {}

    def pieces() -> Iterator[int]:
        for number in range(40):
            made.append(number)
            assert len(made) - len(done) <= 2 * ACTORS + 1, "two for each actor, and the one that is made now"
            yield number

    with actors() as pool:
        for number, result in pool.completed(_square, pieces()):
            done[number] = result
    assert done == {number: number * number for number in range(40)}


def _square(state: None, piece: int) -> int:
    return piece * piece
