"""Training step, loop, engines and checkpoints, for one or more processes, with or without Ray."""
