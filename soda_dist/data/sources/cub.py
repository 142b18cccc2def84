"""CUB-200-2011: birds of 200 species with 312 attributes, in the published splits.

CUB_200_2011/, or CUB_200_2011.tgz, which is read in place (1.2 GB, inflated once for each listing and once for each
256 MiB of a shard's images; an unpacked folder is quicker). Files by number of image: images.txt,
image_class_labels.txt, train_test_split.txt (1: train), bounding_boxes.txt (x, y, width, height) and
attributes/image_attribute_labels.txt (image, attribute, present, certainty, time; some lines have more columns); names
in classes.txt and attributes.txt, which lies in attributes/ or beside CUB_200_2011/. Rows are those of images.txt.
Published at https://www.vision.caltech.edu/datasets/cub_200_2011/.

Images are cropped to the bird (appendix D.2). Our reading: the smallest square about the centre of its box that holds
the box, black where it leaves the image, encoded as PNG. An attribute is what was said to be present, at any certainty.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from soda_dist.data import source as contract
from soda_dist.data.formats.attribute_columns import attribute_rows, attribute_values, can_be_columns
from soda_dist.data.formats.file_trees import FolderTree, Tree, file_index, open_trees
from soda_dist.data.formats.fixed_records import encode_png
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, check_image
from soda_dist.data.storage.folder import locate
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError

INNER, ARCHIVES = "CUB_200_2011/", ("CUB_200_2011.tgz", "CUB_200_2011.tar.gz", "CUB_200_2011.zip")
IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLITS, BOXES, PRESENT = "train_test_split.txt", "bounding_boxes.txt", "attributes/image_attribute_labels.txt"
NAMES = "attributes.txt"
LAYOUT = f"{INNER}{IMAGES} and the files beside it, or {ARCHIVES[0]}"
MOST_DIGITS = 9
"""Of a number of an image, a class or an attribute: Python refuses to read thousands of them."""
LARGEST_SIDE = 4096
"""Of a square: images have up to 500 pixels, so a larger box is damaged."""
ATTRIBUTE = Label(kind="attribute", names=("no", "yes"))
REMEDY = "download it again"


class Options(contract.Options):
    """What of the images and of what is known of them."""

    crop: Literal["box", "none"] = "box"
    """None: whole images, in their published bytes."""
    attributes: bool = True


class Box(NamedTuple):
    """Of the bird, in pixels of the published image."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Cub:
    """Rows in the order of numbers, which the import shuffles. `attributes` is empty where they are left out."""

    tree: Tree
    root: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    crop: bool

    @property
    def contents(self) -> Contents:
        return Contents(
            columns=tuple(pa.field(name, pa.int32()) for name in ("label", *self.attributes)),
            labels={"label": Label(kind="class", names=self.classes), **dict.fromkeys(self.attributes, ATTRIBUTE)},
            main_label="label",
            shuffled=True,
        )

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.root + IMAGES) for split in ("train", "test")]

    def index(self, part: Part) -> pa.Table:
        names = [IMAGES, LABELS, SPLITS, BOXES, *([PRESENT] if self.attributes else [])]
        texts = _read(self.tree, self.root, names)
        images, labels, splits, boxes = (_by_number(self.tree, name, texts[name]) for name in names[:4])
        number_of = {"train": "1", "test": "0"}[part.split]
        unknown = next((n for n in images if splits.get(n) not in ("0", "1")), None)
        if unknown is not None:
            raise _wrong(self.tree, SPLITS, f"no 0 or 1 for image {unknown}")
        numbers = [number for number in sorted(images) if splits[number] == number_of]
        found = self.tree.find([f"{self.root}images/{images[number]}" for number in numbers])
        columns = {
            "label": pa.array([self._label(labels, number) for number in numbers], pa.int32()),
            "box": pa.array([_box(boxes.get(number, "")) for number in numbers], pa.list_(pa.float64(), 4)),
        }
        present = _present(texts[PRESENT], len(self.attributes)) if self.attributes else {}
        rows = [present.get(number) for number in numbers] if self.attributes else [""] * len(numbers)
        return file_index(found, **columns, **attribute_values(rows, len(self.attributes), {"0": 0, "1": 1}))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        for row in attribute_rows(self.tree, index, self.attributes, ["label", "box"]):
            columns = dict(row.columns)
            box = columns.pop("box")
            bare = row._replace(columns=columns)
            yield _cropped(bare, box) if self.crop and not row.problem else bare

    def _label(self, labels: dict[int, str], number: int) -> int:
        text = labels.get(number, "")
        if not _is_number(text) or not 1 <= int(text) <= len(self.classes):
            raise _wrong(self.tree, LABELS, f"no class 1..{len(self.classes)} for image {number}")
        return int(text) - 1


def open_source(uri: str, options: Options) -> Source:
    """CUB-200-2011 at `uri`.

    Raises:
        UserError: no images, or a file that is missing or wrong.
    """
    for tree in open_trees(uri, ARCHIVES):
        for root in ("", INNER):
            if "images" in tree.folders(root) and IMAGES in [m.name[len(root) :] for m in tree.direct_files(root)]:
                names = _by_number(tree, CLASSES, _read(tree, root, [CLASSES])[CLASSES])
                attributes = _attribute_names(tree, root) if options.attributes else ()
                return Cub(tree, root, _in_order(tree, CLASSES, names), attributes, options.crop == "box")
    raise UserError(uri, "no images of CUB-200-2011", LAYOUT, "correct the path")


def _read(tree: Tree, root: str, names: Sequence[str]) -> dict[str, bytes]:
    found = tree.read([root + name for name in names])
    missing = next((name for name in names if root + name not in found), None)
    if missing:
        raise _wrong(tree, root + missing, "a missing file", "set attributes=false" if missing == PRESENT else REMEDY)
    return {name: found[root + name] for name in names}


def _attribute_names(tree: Tree, root: str) -> tuple[str, ...]:
    places = [f"{root}attributes/{NAMES}", f"{root}{NAMES}", NAMES]
    found = tree.read(list(dict.fromkeys(places)))
    text = next((found[place] for place in places if place in found), None)
    if text is None and isinstance(tree, FolderTree):
        # The folder that was named is CUB_200_2011 itself, and the file lies beside it.
        text = FolderTree(locate(tree.uri)[0]).read([NAMES]).get(NAMES)
    if text is None:
        raise _wrong(tree, NAMES, "a missing file", "put it there, or set attributes=false")
    names = _in_order(tree, NAMES, _by_number(tree, NAMES, text))
    if not can_be_columns(names):
        raise _wrong(tree, NAMES, "an attribute that is called like another column")
    return names


def _in_order(tree: Tree, name: str, texts: dict[int, str]) -> tuple[str, ...]:
    if sorted(texts) != list(range(1, len(texts) + 1)) or len(set(texts.values())) < len(texts) or not texts:
        raise _wrong(tree, name, "numbers or names that do not count 1, 2, ...")
    return tuple(texts[number] for number in sorted(texts))


def _by_number(tree: Tree, name: str, text: bytes) -> dict[int, str]:
    """The lines of a file, without the number that each begins with, by that number."""
    found = {}
    for line in text.decode("utf-8", "replace").splitlines():
        if line.strip():
            number, *rest = line.split(None, 1)
            if not _is_number(number) or not rest:
                raise _wrong(tree, name, f"the line {line[:60]}")
            if int(number) in found:
                raise _wrong(tree, name, f"the number {int(number)} twice")
            found[int(number)] = rest[0].strip()
    return found


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MOST_DIGITS


def _wrong(tree: Tree, name: str, got: str, remedy: str = REMEDY) -> UserError:
    return UserError(f"{tree.uri}/{name}", got, LAYOUT, remedy)


def _present(text: bytes, count: int) -> dict[int, str]:
    """Zeros and ones of each image, in the order of attributes; fewer where some are not told."""
    found: dict[int, bytearray] = {}
    for line in io.BytesIO(text):  # millions, which are not held
        columns = line.split(None, 3)
        if len(columns) < 3 or not (columns[0].isdigit() and columns[1].isdigit() and columns[2] in (b"0", b"1")):
            continue
        if max(len(columns[0]), len(columns[1])) > MOST_DIGITS:
            continue
        at = int(columns[1]) - 1
        if 0 <= at < count:
            found.setdefault(int(columns[0]), bytearray(count))[at] = columns[2][0]
    return {number: values.replace(b"\0", b"").decode() for number, values in found.items()}


def _box(text: str) -> Box | None:
    try:
        box = Box(*(float(value) for value in text.split()))
    except (ValueError, TypeError):
        return None
    sound = all(math.isfinite(value) for value in box) and min(box.width, box.height) > 0
    return box if sound and max(box) <= LARGEST_SIDE else None


def _cropped(row: Row, box: list[float] | None) -> Row:
    reason = check_image(row.image) or (None if box else "no box")
    header = None if reason else read_header(row.image)
    image = decode(row.image, header, 1) if header else None
    if image is None or box is None:
        return row._replace(image=b"", problem=reason or "an image that cannot be decoded")
    square = crop_square(image, Box(*box))
    return (
        row._replace(image=encode_png(square))
        if square is not None
        else row._replace(problem="a box outside the image")
    )


def crop_square(image: np.ndarray[Any, Any], box: Box) -> np.ndarray[Any, Any] | None:
    """The smallest square about the centre of a box that holds it; None if none of it is in the image.

    Args:
        image: uint8 [h, w, 3].
        box: of whole pixels, as the published ones; others may lose half a pixel at an edge.
    """
    side = math.ceil(max(box.width, box.height))
    top, left = round(box.y + box.height / 2 - side / 2), round(box.x + box.width / 2 - side / 2)
    inside = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if not inside.size:
        return None
    square = np.zeros((side, side, 3), np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    square[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return square
