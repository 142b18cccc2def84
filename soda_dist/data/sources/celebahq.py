"""CelebA-HQ: 30,000 faces with 40 attributes, or with gender alone.

CelebAMask-HQ (https://github.com/switchablenorms/CelebAMask-HQ), a folder or CelebAMask-HQ.zip read in place, has
CelebA-HQ-img/N.jpg, CelebAMask-HQ-attribute-anno.txt (a count; the names; `N.jpg` and a 1 or -1 per name) and
CelebA-HQ-to-CelebA-mapping.txt (a heading; number, number in CelebA, file in CelebA). CelebA's list_eval_partition.txt
(0, 1, 2) next to it assigns those files to splits of 24,183 training, 2,993 validation and 2,824 test images. Masks are
ignored.

StarGAN v2's celeba_hq/{train,val}/{female,male}/, a folder or celeba_hq.zip, has the single attribute `Male`.

Example:
    python jobs/prepare_data.py celebahq --source CelebAMask-HQ.zip --data data/celebahq
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from soda_dist.data import source as contract
from soda_dist.data.formats.attribute_columns import attribute_index, attribute_rows, is_number, valid_names
from soda_dist.data.formats.class_folders import open_classes
from soda_dist.data.formats.file_trees import Tree, file_index, open_trees
from soda_dist.data.formats.hashed_splits import SHARES, split_numbers
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import ATTRIBUTES, Label
from soda_dist.data.source import Contents, Part, Row, Source
from soda_dist.errors import UserError

ROOTS = ("", "CelebAMask-HQ/", "celeba_hq/")
ARCHIVES = ("CelebAMask-HQ.zip", "celeba_hq.zip")
IMAGES, ANNOTATIONS = "CelebA-HQ-img/", "CelebAMask-HQ-attribute-anno.txt"
MAPPING, PARTITION = "CelebA-HQ-to-CelebA-mapping.txt", "list_eval_partition.txt"
SPLITS = {"0": "train", "1": "val", "2": "test"}
ATTRIBUTE = Label(kind="attribute", names=("no", "yes"))
GENDERS = ("female", "male")
LAYOUTS = f"{IMAGES}, {ANNOTATIONS} and {MAPPING}, or {{train,val}}/{{female,male}}/"


class Options(contract.Options):
    splits: Literal["celeba", "drawn"] = "celeba"
    """CelebA's, or drawn 80/10/10. StarGAN v2's layout has its two folders as splits."""


def open_source(uri: str, options: Options) -> Source:
    """Open CelebA-HQ at `uri`, in either layout.

    Raises:
        UserError: neither layout, or a missing or invalid file.
    """
    for tree in open_trees(uri, ARCHIVES):
        for root in ROOTS:
            folders = tree.folders(root)
            if IMAGES.rstrip("/") in folders:
                return _open_attributes(tree, root, options)
            if "train" in folders and "val" in folders:
                if options.splits == "drawn":
                    raise UserError(
                        "splits", f"drawn, but {tree.uri} has folders train and val", "celeba", "leave it out"
                    )
                splits = tuple((split, f"{root}{split}/") for split in ("train", "val"))
                return open_classes(tree, splits, GENDERS, column="Male", label=ATTRIBUTE)
    raise UserError(uri, "none of CelebA-HQ's layouts", LAYOUTS, "correct the path")


def _open_attributes(tree: Tree, root: str, options: Options) -> Source:
    annotations = _annotations(tree, root)
    source = CelebAMaskHQ(tree, root, annotations.names, options.splits == "drawn", options.seed)
    source.numbers()
    return source


class Annotations(NamedTuple):
    """Attribute names, and the published values of each image."""

    names: tuple[str, ...]
    values: dict[str, list[str]]


def _annotations(tree: Tree, root: str) -> Annotations:
    lines = [line.split() for line in _read(tree, root + ANNOTATIONS)]
    uri = f"{tree.uri}/{root}{ANNOTATIONS}"
    if len(lines) < 2 or len(lines[0]) != 1 or not lines[1]:
        raise UserError(uri, "no count and names", "the published file", "restore it")
    if not valid_names(lines[1]):
        raise UserError(uri, "a repeated or reserved name", "the published file", "restore it")
    return Annotations(tuple(lines[1]), {name: values for name, *values in lines[2:]})


def _read(tree: Tree, name: str) -> list[str]:
    found = tree.read([name])
    if name not in found:
        raise UserError(f"{tree.uri}/{name}", "a missing file", LAYOUTS, "download it again")
    return text_lines(found[name], f"{tree.uri}/{name}")


@dataclass(frozen=True)
class CelebAMaskHQ:
    """Rows sorted by image number."""

    tree: Tree
    root: str
    names: tuple[str, ...]
    drawn: bool
    seed: int

    @property
    def contents(self) -> Contents:
        contents = Contents.with_labels(dict.fromkeys(self.names, ATTRIBUTE), ATTRIBUTES)
        return replace(contents, drawn=self.drawn)

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.root + IMAGES) for split, numbers in self.numbers().items() if numbers]

    def index(self, part: Part) -> pa.Table:
        found = self.tree.find([f"{part.name}{number}.jpg" for number in self.numbers()[part.split]])
        values = _annotations(self.tree, self.root).values
        rows = [values.get(member.name.rpartition("/")[2]) for member in found]
        return file_index(found, **attribute_index(rows, len(self.names), {"-1": 0, "1": 1}))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return attribute_rows(self.tree, index, self.names)

    def numbers(self) -> dict[str, list[int]]:
        """List the image numbers per split.

        Raises:
            UserError: a missing file, or one that lacks an image.
        """
        name = self.root + MAPPING
        lines = [line.split() for line in _read(self.tree, name)[1:]]
        wrong = next((line for line in lines if len(line) != 3 or not is_number(line[0])), None)
        if wrong or not lines:
            got = f"the line {' '.join(wrong)[:80]}" if wrong else "no lines"
            raise UserError(f"{self.tree.uri}/{name}", got, "number, number in CelebA, file in CelebA", "restore it")
        files = {int(line[0]): line[2] for line in lines}
        if self.drawn:
            ordered = np.array(sorted(files))
            return {split: ordered[at].tolist() for split, at in split_numbers(len(ordered), self.seed).items()}
        found: dict[str, list[int]] = {split: [] for split in SHARES}
        split_of = self._partition()
        for number in sorted(files):
            if files[number] not in split_of:
                raise UserError(PARTITION, f"no line {files[number]} 0|1|2", f"every file of {MAPPING}", "restore it")
            found[split_of[files[number]]].append(number)
        return found

    def _partition(self) -> dict[str, str]:
        inside = self.tree.read([self.root + PARTITION])
        if inside:
            text = inside[self.root + PARTITION]
        elif self.tree.folder.exists(PARTITION):
            text = self.tree.folder.read(PARTITION)
        else:
            remedy = "copy it from CelebA, or set splits=drawn"
            raise UserError(self.tree.folder.file_uri(PARTITION), "a missing file", "CelebA's partition", remedy)
        lines = (line.split() for line in text_lines(text, PARTITION))
        return {line[0]: SPLITS[line[1]] for line in lines if len(line) == 2 and line[1] in SPLITS}
