"""CelebA-HQ: CelebAMask-HQ with CelebA's partition, and StarGAN v2's folders."""

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture

ATTRIBUTES = ("5_o_Clock_Shadow", "Male", "Young")
"""Three of the forty."""
VALUES = {0: (-1, -1, 1), 1: (1, 1, -1), 2: (-1, 1, 1), 3: (-1, -1, -1), 10: (1, 1, 1)}
"""By number of image."""
ORIGINALS = {0: "119613.jpg", 1: "099094.jpg", 2: "182638.jpg", 3: "200000.jpg", 10: "162771.jpg"}
PARTITION = {"099094.jpg": 0, "119613.jpg": 0, "162770.jpg": 0, "162771.jpg": 1, "182638.jpg": 2, "200000.jpg": 2}
ROOT = "CelebAMask-HQ"


def files() -> dict[str, bytes]:
    """As published: a blank line, two spaces, a heading, and masks that nobody asked for."""
    lines = [f"{number}.jpg  {' '.join(str(v) for v in values)} \n" for number, values in VALUES.items()]
    mapping = "".join(f"{number:<12}{int(file[:6]) - 1:<12}{file}\n" for number, file in reversed(ORIGINALS.items()))
    return {
        f"{ROOT}/CelebAMask-HQ-attribute-anno.txt": f"5\n{' '.join(ATTRIBUTES)}\n{''.join(lines)}\n".encode(),
        f"{ROOT}/CelebA-HQ-to-CelebA-mapping.txt": f"idx    orig_idx    orig_file\n{mapping}".encode(),
        f"{ROOT}/CelebAMask-HQ-mask-anno/0/00000_hair.png": picture(99, "PNG", mode="L"),
        **{f"{ROOT}/CelebA-HQ-img/{number}.jpg": picture(number) for number in VALUES},
    }


def partition() -> bytes:
    return "".join(f"{file} {split}\n" for file, split in PARTITION.items()).encode()


def stargan() -> dict[str, bytes]:
    counts = {"train/female": 3, "train/male": 2, "val/female": 1, "val/male": 1}
    return {
        f"celeba_hq/{place}/{number:06d}.jpg": picture(10 * at + number)
        for at, (place, count) in enumerate(counts.items())
        for number in range(count)
    }


def write(folder: Folder) -> None:
    """CelebAMask-HQ, unpacked, with the partition beside it."""
    for name, data in files().items():
        folder.write(name, data)
    folder.write("list_eval_partition.txt", partition())
