"""CUB-200-2011: tables of text by number of image, three classes and four attributes of it."""

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture, tar_of

ROOT = "CUB_200_2011"
CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
ATTRIBUTES = ("has_bill_shape::curved_(up_or_down)", "has_wing_color::blue", "has_size::small_(5_-_9_in)", "has_x::y")
IMAGES = {1: (1, 0), 2: (1, 1), 3: (2, 1), 4: (3, 0), 5: (3, 1)}
"""Class, and 1 for training, by number."""
BOXES = {
    1: (4.0, 3.0, 12.0, 10.0),
    2: (0.0, 0.0, 30.0, 20.0),
    3: (20.0, 12.0, 10.0, 8.0),
    4: (5.0, 6.0, 3.0, 9.0),
    5: (1.0, 2.0, 5.5, 4.25),
}
"""x, y, width and height in images of 30x20."""
PRESENT = {1: (0, 1, 0, 1), 2: (1, 1, 1, 1), 3: (0, 0, 0, 0), 4: (1, 0, 0, 1), 5: (0, 0, 1, 0)}
GREY = 3
"""The image of one channel, as eight of the published ones."""


def name(number: int) -> str:
    return f"{CLASSES[IMAGES[number][0] - 1]}/Bird_{number:04d}_79{number}.jpg"


def image(number: int) -> bytes:
    return picture(number, mode="L" if number == GREY else "RGB")


def table(lines: dict[int, str]) -> bytes:
    return "".join(f"{number} {text}\n" for number, text in lines.items()).encode()


def files() -> dict[str, bytes]:
    """Times of annotators vary, and two lines have columns too many."""
    present = [
        f"{number} {attribute} {value} {1 + (number + attribute) % 4} {1.5 * attribute:.3f}"
        for number, values in PRESENT.items()
        for attribute, value in enumerate(values, 1)
    ]
    present[5] = present[5].replace(" 1 ", " 1 0 3 ", 1)
    present[9] += " 0"
    return {
        "attributes.txt": table(dict(enumerate(ATTRIBUTES, 1))),
        f"{ROOT}/README": b"text",
        f"{ROOT}/images.txt": table({number: name(number) for number in IMAGES}),
        f"{ROOT}/image_class_labels.txt": table({number: str(label) for number, (label, _) in IMAGES.items()}),
        f"{ROOT}/train_test_split.txt": table({number: str(train) for number, (_, train) in IMAGES.items()}),
        f"{ROOT}/bounding_boxes.txt": table({n: " ".join(f"{v:.1f}" for v in box) for n, box in BOXES.items()}),
        f"{ROOT}/classes.txt": table(dict(enumerate(CLASSES, 1))),
        f"{ROOT}/attributes/image_attribute_labels.txt": ("\n".join(present) + "\n").encode(),
        f"{ROOT}/attributes/certainties.txt": b"1 not visible\n",
        **{f"{ROOT}/images/{name(number)}": image(number) for number in reversed(IMAGES)},
    }


def write(folder: Folder) -> None:
    """The published archive."""
    folder.write(f"{ROOT}.tgz", tar_of(files(), "w:gz"))


def write_folder(folder: Folder) -> None:
    """Unpacked."""
    for file, data in files().items():
        folder.write(file, data)
