"""Tiny ImageNet as published, a layout that the kind `folder` recognises by its annotations of val.

train/WNID/images/*.JPEG        beside WNID_boxes.txt, which is left out
val/images/*.JPEG               classes in val/val_annotations.txt: FILE, WNID and a box, separated by tabs
test/images/*.JPEG              without labels
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from soda_dist.data.formats.class_folders import class_names, label_index, labelled_rows
from soda_dist.data.formats.file_trees import Tree, folder_of
from soda_dist.data.formats.published_names import one_form
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, LabelOptions, Part, Row
from soda_dist.errors import UserError

IMAGES = "images/"
NOTE = "read as Tiny ImageNet: classes of val from its annotations; boxes left out"


@dataclass(frozen=True)
class TinyImageNet:
    """Rows sorted by name; the import shuffles them. `splits` has (name, prefix of its files)."""

    tree: Tree
    splits: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    unlabelled: bool

    @property
    def contents(self) -> Contents:
        contents = Contents.with_labels({"label": Label(kind="class", names=self.classes)}, "label", shuffled=True)
        return replace(contents, notes=(NOTE,), files=folder_of(self.tree))

    def parts(self) -> Sequence[Part]:
        prefixes = dict(self.splits)
        train = [Part("train", f"{prefixes['train']}{name}/") for name in self.tree.folders(prefixes["train"])]
        return [*train, *(Part(split, prefix) for split, prefix in self.splits if split != "train")]

    def index(self, part: Part) -> pa.Table:
        found = self.tree.files(part.name + IMAGES)
        if part.split == "train":
            return label_index(found, "label", [self.classes.index(_last(part.name.rstrip("/")))] * len(found))
        class_of = read_annotations(self.tree, part.split, part.name)
        names = (class_of.get(_last(member.name)) for member in found)
        return label_index(found, "label", [None if name is None else self.classes.index(name) for name in names])

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return labelled_rows(self.tree, index, "label", unlabelled=self.unlabelled, problem="no annotation")


def find(tree: Tree, splits: tuple[tuple[str, str], ...], options: LabelOptions) -> TinyImageNet | None:
    """Open Tiny ImageNet in these split folders; None if no split has annotations.

    Raises:
        UserError: annotations that are damaged, or name a class that train lacks.
    """
    classes = class_names(tree.folders(dict(splits)["train"]))
    annotated = False
    for split, prefix in splits[1:]:
        class_of = read_annotations(tree, split, prefix)
        unknown = next((name for name in class_of.values() if name not in classes), None)
        if unknown is not None:
            uri = f"{tree.uri}/{_annotations(split, prefix)}"
            raise UserError(uri, f"the class {unknown}, which train lacks", "classes of train", "restore the folders")
        annotated = annotated or bool(class_of)
    return TinyImageNet(tree, splits, classes, options.unlabelled == "import") if annotated else None


def read_annotations(tree: Tree, split: str, prefix: str) -> dict[str, str]:
    """Read the class of each file; empty for a split without annotations."""
    name = _annotations(split, prefix)
    uri, class_of = f"{tree.uri}/{name}", dict[str, str]()
    for line in text_lines(tree.read([name]).get(name, b""), uri):
        file, *rest = line.split("\t")
        if not rest:
            raise UserError(uri, f"the line {line[:60]}", "a file, its class and a box, with tabs", "download it again")
        class_of[file] = rest[0]
    return class_of


def _annotations(split: str, prefix: str) -> str:
    return f"{prefix}{split}_annotations.txt"


def _last(name: str) -> str:
    return one_form(name.rpartition("/")[2])
