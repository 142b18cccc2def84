"""Image folders with one folder per split, optionally with one per class: SPLIT/CLASS/image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from soda_dist.data.formats.archive import Member
from soda_dist.data.formats.file_trees import Tree, file_index, folder_of
from soda_dist.data.formats.published_names import one_form
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row
from soda_dist.errors import UserError


@dataclass(frozen=True)
class ClassFolders:
    """Rows sorted by name; the import shuffles them.

    Attributes:
        splits: (name, prefix of its files).
        classes: class folders in the order of the label's values; empty = images at any depth, without a label.
        column, label: the column for the class folder, and its classes.
        unlabelled: import images outside class folders without a label, instead of rejecting them.
        notes: as in `Contents`.
    """

    tree: Tree
    splits: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    column: str
    label: Label
    rows_per_group: int = 64
    unlabelled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def contents(self) -> Contents:
        labels = {self.column: self.label} if self.classes else {}
        main = self.column if self.classes else None
        contents = Contents.with_labels(labels, main, rows_per_group=self.rows_per_group, shuffled=True)
        return replace(contents, notes=self.notes, files=folder_of(self.tree))

    def parts(self) -> Sequence[Part]:
        return [
            Part(split, prefix + name)
            for split, prefix in self.splits
            for name in ["", *(f"{name}/" for name in (self.tree.folders(prefix) if self.classes else ()))]
        ]

    def index(self, part: Part) -> pa.Table:
        if not self.classes:
            return file_index(self.tree.files(part.name))
        if part in [Part(*split) for split in self.splits]:
            unsorted = self.tree.direct_files(part.name)
            return label_index(unsorted, self.column, [None] * len(unsorted))
        found = self.tree.files(part.name)
        name = one_form(part.name.rstrip("/").rpartition("/")[2])
        value = self.classes.index(name) if name in self.classes else None
        return label_index(found, self.column, [value] * len(found))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return labelled_rows(self.tree, index, self.column, unlabelled=self.unlabelled)


def label_index(found: Sequence[Member], column: str, values: Sequence[int | None]) -> pa.Table:
    """Index files with their labels; None = no label."""
    return file_index(found, **{column: pa.array(values, pa.int32())})


def labelled_rows(
    tree: Tree, index: pa.Table, column: str, *, unlabelled: bool = False, problem: str = "not in a class folder"
) -> Iterator[Row]:
    """Read the rows of such an index; a file without a label gets the problem, unless `unlabelled` ones are wanted."""
    columns = [column] if column in index.column_names else []
    for row in tree.rows(index, columns):
        lacks = bool(columns) and row.columns[column] is None and not unlabelled
        yield row._replace(image=b"", problem=problem) if lacks else row


def class_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that folders stand for, sorted; folders whose names differ in Unicode's form alone are one."""
    return tuple(sorted({one_form(name) for name in folders}))


def open_classes(
    tree: Tree,
    splits: tuple[tuple[str, str], ...],
    classes: tuple[str, ...],
    *,
    column: str = "label",
    label: Label | None = None,
    rows_per_group: int = 64,
) -> ClassFolders:
    """Open splits whose folders are classes.

    Raises:
        UserError: a split with an unknown folder, or without folders.
    """
    for split, prefix in splits:
        have = class_names(tree.folders(prefix))
        unknown = next((name for name in have if name not in classes), None)
        if unknown or not have:
            got = f"the folder {unknown} in {split}" if unknown else f"no class folder in {split}"
            raise UserError(tree.uri, got, ", ".join(classes), "sort the images by class, as published")
    label = label or Label(kind="class", names=classes)
    return ClassFolders(tree, splits, classes, column, label, rows_per_group)
