"""WebDataset's tars, written with tarfile: JPEG and PNG samples with a class number and a JSON each."""

import json

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture, tar_of

CLASSES = 5


def sample(number: int) -> dict[str, bytes]:
    """Three members of the sample with this number, in a folder, with a dot in the folder's name."""
    kind = "png" if number % 2 else "jpg"
    image = picture(number, "PNG" if number % 2 else "JPEG")
    told = {"label": number % CLASSES, "name": f"class {number % CLASSES}", "size": [20, 30]}
    return {
        f"v1.0/{number:05d}.{kind}": image,
        f"v1.0/{number:05d}.cls": str(number % CLASSES).encode(),
        f"v1.0/{number:05d}.json": json.dumps(told).encode(),
    }


def tar(numbers: range) -> bytes:
    files: dict[str, bytes] = {}
    for number in numbers:
        files |= sample(number)
    return tar_of(files)


def write(folder: Folder) -> None:
    folder.write("set-train-000000.tar", tar(range(6)))
    folder.write("set-train-000001.tar", tar(range(6, 10)))
    folder.write("set-val-000000.tar", tar(range(20, 23)))
    folder.write("classes.txt", "".join(f"class {number}\n" for number in range(CLASSES)).encode())
