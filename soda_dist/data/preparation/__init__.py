"""From a published data set to checked shards, over a pool. No Ray."""

from soda_dist.data.preparation.importer import prepare
from soda_dist.data.preparation.verify import check

__all__ = ["check", "prepare"]
