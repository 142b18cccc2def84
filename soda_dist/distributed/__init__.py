"""Everything that runs on Ray: preparation, ingest, pretraining, evaluation, search."""
