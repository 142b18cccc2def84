"""AFHQ's two versions: other held-out splits, other formats, the same classes."""

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture

COUNTS = {"train": {"cat": 3, "dog": 2, "wild": 1}, "held_out": {"cat": 1, "dog": 1, "wild": 2}}


def files(version: int) -> dict[str, bytes]:
    """By published names, such as flickr_cat_000002.jpg, below the version's folder."""
    root, held_out, kind = {1: ("afhq", "val", "JPEG"), 2: ("afhq_v2", "test", "PNG")}[version]
    end = {1: "jpg", 2: "png"}[version]
    found = {}
    for split, counts in COUNTS.items():
        for name, count in counts.items():
            place = f"{root}/{'train' if split == 'train' else held_out}/{name}"
            for number in range(count):
                found[f"{place}/flickr_{name}_{number:06d}.{end}"] = picture(len(found), kind)
    return found


def write(folder: Folder) -> None:
    """Version 1, unpacked."""
    for name, data in files(1).items():
        folder.write(name, data)
