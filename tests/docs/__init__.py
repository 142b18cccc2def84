"""What the documentation says is true: its commands parse, its snippets compile, its files exist."""
