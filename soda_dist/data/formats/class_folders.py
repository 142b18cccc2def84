"""Splits that are folders of images, or of folders that say what the images show: SPLIT/CLASS/image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from soda_dist.data.formats.archive import Member
from soda_dist.data.formats.file_trees import Tree, table
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row
from soda_dist.errors import UserError


@dataclass(frozen=True)
class ClassFolders:
    """Rows in the order of names, which the import shuffles.

    Attributes:
        splits: (name, prefix of its files).
        classes: the folders, in the order of the label's values; none: images at any depth, without a label.
        column, label: what a folder tells.
    """

    tree: Tree
    splits: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    column: str
    label: Label
    rows_per_group: int = 64

    @property
    def contents(self) -> Contents:
        if not self.classes:
            return Contents((), rows_per_group=self.rows_per_group, shuffled=True)
        field = pa.field(self.column, pa.int32())
        return Contents((field,), {self.column: self.label}, self.column, self.rows_per_group, shuffled=True)

    def parts(self) -> Sequence[Part]:
        below = ["", *(f"{name}/" for name in self.classes)]
        return [Part(split, prefix + name) for split, prefix in self.splits for name in below]

    def index(self, part: Part) -> pa.Table:
        if not self.classes:
            return table(self.tree.files(part.name))
        if part in [Part(*split) for split in self.splits]:
            beside = self.tree.beside(part.name)
            return labelled(beside, self.column, [None] * len(beside))
        found = self.tree.files(part.name)
        value = self.classes.index(part.name.rstrip("/").rpartition("/")[2])
        return labelled(found, self.column, [value] * len(found))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return labelled_rows(self.tree, index, self.column)


def labelled(found: Sequence[Member], column: str, values: Sequence[int | None]) -> pa.Table:
    """An index of files with a label each, None for those that have none."""
    return table(found, **{column: pa.array(values, pa.int32())})


def labelled_rows(tree: Tree, index: pa.Table, column: str) -> Iterator[Row]:
    """The rows of such an index; a file without a label has a problem."""
    columns = [column] if column in index.column_names else []
    for row in tree.rows(index, columns):
        outside = bool(columns) and row.columns[column] is None
        yield row._replace(image=b"", problem="in no folder of a class") if outside else row


def open_classes(
    tree: Tree,
    splits: tuple[tuple[str, str], ...],
    classes: tuple[str, ...],
    *,
    column: str = "label",
    label: Label | None = None,
    rows_per_group: int = 64,
) -> ClassFolders:
    """Splits whose folders are some of these classes.

    Raises:
        UserError: a split with another folder, or without any.
    """
    for split, prefix in splits:
        have = tree.folders(prefix)
        unknown = next((name for name in have if name not in classes), None)
        if unknown or not have:
            got = f"the folder {unknown} in {split}" if unknown else f"no folder of a class in {split}"
            raise UserError(tree.uri, got, ", ".join(classes), "sort the images by class, as published")
    label = label or Label(kind="class", names=classes)
    return ClassFolders(tree, splits, classes, column, label, rows_per_group)
