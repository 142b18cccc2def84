"""Sources, shards, order and view pairs. No Ray, and no torch."""
