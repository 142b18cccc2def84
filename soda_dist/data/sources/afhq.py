"""Animal Faces-HQ: cats, dogs and wildlife at 512x512 pixels, in the published splits.

Version 1, {train,val}/{cat,dog,wild}/*.jpg, and version 2, {train,test}/{cat,dog,wild}/*.png, optionally in `afhq/` or
`afhq_v2/`; a folder, or afhq.zip or afhq_v2.zip read in place. Described at https://github.com/clovaai/stargan-v2.

Example:
    python jobs/prepare_data.py afhq --source afhq_v2.zip --data data/afhq
"""

from soda_dist.data.formats.class_folders import open_classes
from soda_dist.data.formats.file_trees import open_trees
from soda_dist.data.source import Options, Source
from soda_dist.errors import UserError

CLASSES = ("cat", "dog", "wild")
ROOTS, ARCHIVES = ("", "afhq/", "afhq_v2/"), ("afhq.zip", "afhq_v2.zip")
HELD_OUT = ("val", "test")
LAYOUT = f"{{train,val|test}}/{{{','.join(CLASSES)}}}/, or one of {', '.join(ARCHIVES)}"


def open_source(uri: str, options: Options) -> Source:
    """Open AFHQ at `uri`.

    Raises:
        UserError: no such folders, or both versions.
    """
    places = [(tree, root, tree.folders(root)) for tree in open_trees(uri, ARCHIVES) for root in ROOTS]
    found = [place for place in places if "train" in place[2]]
    if not found:
        raise UserError(uri, "none of AFHQ's layouts", LAYOUT, "correct the path")
    if len(found) > 1:
        uris = " and ".join(f"{tree.uri}/{root}".rstrip("/") for tree, root, _ in found)
        raise UserError(uri, f"AFHQ more than once: {uris}", "one of them", "choose one")
    tree, root, folders = found[0]
    held_out = [name for name in HELD_OUT if name in folders]
    if not held_out:
        raise UserError(tree.uri, f"{root}train without {' or '.join(HELD_OUT)}", LAYOUT, "add the missing split")
    splits = tuple((split, f"{root}{split}/") for split in ("train", *held_out))
    return open_classes(tree, splits, CLASSES, rows_per_group=32)
