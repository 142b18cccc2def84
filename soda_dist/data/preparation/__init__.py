"""Import of published data sets to shards, and their check, over any pool. Does not import Ray."""

from soda_dist.data.preparation.importer import prepare
from soda_dist.data.preparation.verify import check

__all__ = ["check", "prepare"]
