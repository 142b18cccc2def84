"""CUB-200-2011: birds of 200 species with 312 attributes, in the published splits.

CUB_200_2011/, or CUB_200_2011.tgz read in place (1.2 GB, inflated once per listing and once per 256 MiB of a shard's
images; an unpacked folder is faster). Files by image number: images.txt, image_class_labels.txt, train_test_split.txt
(1 = train), bounding_boxes.txt (x, y, width, height) and attributes/image_attribute_labels.txt (image, attribute,
present, certainty, time; some lines have more columns). Names in classes.txt, and in attributes.txt inside attributes/
or next to CUB_200_2011/. Published at https://www.vision.caltech.edu/datasets/cub_200_2011/.

Images are cropped to the bird (appendix D.2). Our reading: the smallest square around the centre of its box that holds
the box, black outside the image, encoded as PNG. Attributes count as present at any certainty.

Example:
    python jobs/prepare_data.py cub --source CUB_200_2011 --data data/cub crop=none
"""

import io
import math
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from soda_dist.data import source as contract
from soda_dist.data.formats.attribute_columns import MAX_DIGITS, attribute_index, attribute_rows, is_number, valid_names
from soda_dist.data.formats.file_trees import FolderTree, Tree, file_index, open_trees
from soda_dist.data.formats.fixed_records import encode_png
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, check_image
from soda_dist.data.storage.folder import locate
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError

INNER, ARCHIVES = "CUB_200_2011/", ("CUB_200_2011.tgz", "CUB_200_2011.tar.gz", "CUB_200_2011.zip")
IMAGES, CLASSES, LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
SPLITS, BOXES, PRESENT = "train_test_split.txt", "bounding_boxes.txt", "attributes/image_attribute_labels.txt"
NAMES = "attributes.txt"
LAYOUT = f"{INNER}{IMAGES} with its other files, or {ARCHIVES[0]}"
MAX_SIDE = 4096
"""Pixels; larger boxes are damaged, since images have up to 500."""
ATTRIBUTE = Label(kind="attribute", names=("no", "yes"))
REMEDY = "download it again"


class Options(contract.Options):
    crop: Literal["box", "none"] = "box"
    """`none` keeps whole images with their published bytes."""
    attributes: bool = True
    """Import the 312 attributes as labels."""


class Box(NamedTuple):
    """Bounding box in pixels of the published image."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Cub:
    """Rows sorted by image number; the import shuffles them. `attributes` is empty if disabled."""

    tree: Tree
    root: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    crop: bool

    @property
    def contents(self) -> Contents:
        labels = {"label": Label(kind="class", names=self.classes), **dict.fromkeys(self.attributes, ATTRIBUTE)}
        return Contents.with_labels(labels, "label", shuffled=True)

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
        return file_index(found, **columns, **attribute_index(rows, len(self.attributes), {"0": 0, "1": 1}))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        for row in attribute_rows(self.tree, index, self.attributes, ["label", "box"]):
            columns = dict(row.columns)
            box = columns.pop("box")
            bare = row._replace(columns=columns)
            yield _cropped(bare, box) if self.crop and not row.problem else bare

    def _label(self, labels: dict[int, str], number: int) -> int:
        text = labels.get(number, "")
        if not is_number(text) or not 1 <= int(text) <= len(self.classes):
            raise _wrong(self.tree, LABELS, f"no class 1..{len(self.classes)} for image {number}")
        return int(text) - 1


def open_source(uri: str, options: Options) -> Source:
    """Open CUB-200-2011 at `uri`.

    Raises:
        UserError: no images, or a missing or invalid file.
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
        # Given CUB_200_2011 itself, the file is in its parent.
        text = FolderTree(locate(tree.uri)[0]).read([NAMES]).get(NAMES)
    if text is None:
        raise _wrong(tree, NAMES, "a missing file", "restore it, or set attributes=false")
    names = _in_order(tree, NAMES, _by_number(tree, NAMES, text))
    if not valid_names(names):
        raise _wrong(tree, NAMES, "an attribute named like another column")
    return names


def _in_order(tree: Tree, name: str, texts: dict[int, str]) -> tuple[str, ...]:
    if sorted(texts) != list(range(1, len(texts) + 1)) or len(set(texts.values())) < len(texts) or not texts:
        raise _wrong(tree, name, "numbers other than 1, 2, ... or repeated names")
    return tuple(texts[number] for number in sorted(texts))


def _by_number(tree: Tree, name: str, text: bytes) -> dict[int, str]:
    """Map the number at the start of each line to the rest of the line."""
    found = {}
    for line in text_lines(text, f"{tree.uri}/{name}"):
        number, *rest = line.split(None, 1)
        if not is_number(number) or not rest:
            raise _wrong(tree, name, f"the line {line[:60]}")
        if int(number) in found:
            raise _wrong(tree, name, f"the number {int(number)} twice")
        found[int(number)] = rest[0]
    return found


def _wrong(tree: Tree, name: str, got: str, remedy: str = REMEDY) -> UserError:
    return UserError(f"{tree.uri}/{name}", got, LAYOUT, remedy)


def _present(text: bytes, count: int) -> dict[int, str]:
    """Collect each image's zeros and ones in attribute order; shorter if some are missing."""
    found: dict[int, bytearray] = {}
    for line in io.BytesIO(text.removeprefix(BOM_UTF8)):  # a generator: millions of lines
        columns = line.split(None, 3)
        if len(columns) < 3 or not (columns[0].isdigit() and columns[1].isdigit() and columns[2] in (b"0", b"1")):
            continue
        if max(len(columns[0]), len(columns[1])) > MAX_DIGITS:
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
    return box if sound and max(box) <= MAX_SIDE else None


def _cropped(row: Row, box: list[float] | None) -> Row:
    reason = check_image(row.image) or (None if box else "no box")
    header = None if reason else read_header(row.image)
    image = decode(row.image, header, 1) if header else None
    if image is None or box is None:
        return row._replace(image=b"", problem=reason or "an image that cannot be decoded")
    square = crop_square(image, Box(*box))
    changed = {"problem": "a box outside the image"} if square is None else {"image": encode_png(square)}
    return row._replace(**changed)


def crop_square(image: np.ndarray[Any, Any], box: Box) -> np.ndarray[Any, Any] | None:
    """Crop the smallest square around the centre of a box that holds it, black outside; None if outside the image.

    Args:
        image: uint8 [h, w, 3].
        box: in whole pixels, as published; fractional ones may lose half a pixel at an edge.
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
