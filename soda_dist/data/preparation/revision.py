"""What changes of a prepared folder have in common: the new manifest, and the files that it leaves behind.

New and changed shards are written beside the others, under new numbers. A new manifest, which names the digest of the
one before as its parent, then replaces that one, and files that it does not list are deleted. An interrupted change
leaves the folder as it was. A run that is training on the folder ends at the first replaced shard: change a folder
while nothing reads it.
"""

import hashlib
from collections.abc import Iterable, Mapping

from soda_dist.data.preparation.importer import APPEND
from soda_dist.data.preparation.shard_jobs import IMPORT
from soda_dist.data.shards import Manifest, Shard, Split, unlisted_shards, write_manifest
from soda_dist.data.storage.folder import Folder


def publish(folder: Folder, before: Manifest, after: Manifest) -> None:
    """Write the manifest that follows `before`; delete replaced shards, and lists that hold the names of rows."""
    after = after.model_copy(update={"parent": before.digest})
    write_manifest(folder, after)
    discard_leftovers(folder, after)
    folder.remove_tree(APPEND)
    folder.remove_tree(IMPORT)


def discard_leftovers(folder: Folder, manifest: Manifest) -> None:
    """Delete shards that the manifest does not list: an interrupted change left them."""
    for name in unlisted_shards(folder, manifest):
        folder.remove(name)


def split_of_shards(shards: Iterable[Shard]) -> Split:
    """Make a split of these shards, in this order."""
    made = tuple(shards)
    return Split(rows=sum(shard.rows for shard in made), shards=made)


def next_number(split: Split) -> int:
    """Return the first number above those of the split's shards."""
    return 1 + max(int(shard.path.rpartition("/")[2].partition(".")[0]) for shard in split.shards)


def hashed(name: str) -> str:
    """Return the SHA-256 under which the manifest remembers a removed row's name."""
    return hashlib.sha256(name.encode()).hexdigest()


def counts(splits: Mapping[str, Split]) -> str:
    """Count the rows of each split, for a log line."""
    return ", ".join(f"{split.rows:,} {name} rows" for name, split in splits.items())
