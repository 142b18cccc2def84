"""A tree of pictures: splits, classes, and what else lies about."""

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture, turned

FILES = {
    "train/cat/1.jpg": picture(1),
    "train/cat/deeper/2.png": picture(2, "PNG"),
    "train/cat/3.webp": picture(3, "WEBP"),
    "train/Dog/grey.jpg": picture(4, mode="L"),
    "train/Dog/cmyk.jpg": picture(5, mode="CMYK"),
    "train/Dog/alpha.png": picture(6, "PNG", mode="RGBA"),
    "valid/cat/named.jpg": picture(7, "PNG"),
    "valid/cat/turned.jpg": turned(8),
    "test/Dog/9.jpeg": picture(9),
}
REJECTED = {
    "train/cat/notes.txt": "not an image",
    "train/Dog/cut.jpg": "a truncated image",
    "train/Dog/empty.jpg": "an empty file",
    "train/labels.csv": "not in a class folder",
}
UNSEEN = ("README.md", "masks/cat/1.txt", "train/.DS_Store", "train/cat/.hidden/1.jpg", "__MACOSX/train/cat/._1.jpg")


def files() -> dict[str, bytes]:
    rejected = {name: picture(10)[:-40] if "cut" in name else b"" for name in REJECTED}
    rejected["train/cat/notes.txt"] = b"some text"
    rejected["train/labels.csv"] = b"1,2"
    return {**FILES, **rejected, **dict.fromkeys(UNSEEN, b"no row")}


def write(folder: Folder) -> None:
    for name, data in files().items():
        folder.write(name, data)


def tiny() -> dict[str, bytes]:
    """Tiny ImageNet as published; its text of annotations as Windows would save it, of two of three images."""
    names = ("n01", "n02")
    return {
        **{f"train/{wnid}/images/{wnid}_{at}.JPEG": picture(at) for wnid in names for at in range(2)},
        **{f"train/{wnid}/{wnid}_boxes.txt": b"n01_0.JPEG\t0\t0\t9\t9\n" for wnid in names},
        **{f"{split}/images/{split}_{at}.JPEG": picture(at) for split in ("val", "test") for at in range(3)},
        "val/val_annotations.txt": b"\xef\xbb\xbfval_0.JPEG\tn02\t0\t0\t9\t9\r\nval_1.JPEG\tn01\t0\t0\t9\t9\r\n\r\n",
        "wnids.txt": b"n01\nn02\n",
    }
