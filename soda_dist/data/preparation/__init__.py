"""Import of published data sets to shards, their check and later changes, over any pool. Does not import Ray."""

from soda_dist.data.preparation.addition import append
from soda_dist.data.preparation.importer import check_arguments, prepare, survey
from soda_dist.data.preparation.removal import parse_rows, remove
from soda_dist.data.preparation.verify import check

__all__ = ["append", "check", "check_arguments", "parse_rows", "prepare", "remove", "survey"]
