"""From a published data set to checked shards, over a pool."""
