"""The training step, loop, engines and checkpoints: one process or many, with or without Ray."""
