"""Lengths of runs in epochs of the paper's data sets (table 10)."""

from soda_dist.config.sections import Sections

TRAINING_IMAGES = {
    "imagenet": 1_281_167,
    "celebahq": 24_183,
    "lsun": 3_033_042,  # bedrooms
    "afhq": 14_630,
    "nmr": 735_000,
    "shapenet": 5_024_000,
    "gso": 96_000,
    "smallnorb": 24_300,
    "shapes3d": 384_000,
    "mpi3d_toy": 829_440,
    "mpi3d_realistic": 829_440,
    "mpi3d_real": 829_440,
    "mpi3d_complex": 368_640,
    "cub": 5_994,
    "flowers102": 1_020,
}
"""Preset -> images of its training split: table 10's sizes, of which published or drawn (80 %, D.2) splits train."""


def epochs(preset: str, config: Sections) -> float | None:
    """Return steps x batch / training images of a preset's data set; None for a preset without one in the paper."""
    images = TRAINING_IMAGES.get(preset)
    return config.train.steps * config.train.global_batch / images if images else None
