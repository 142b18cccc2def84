"""Pictures, tables and one self-contained page from a run's folder."""
