"""Any tree of images: a folder, or a .zip, .tar or .tar.gz of one.

    {train,val,test}/CLASS/IMAGE    also `valid`, `validation`, `dev`, `training`, `testing`
    {train,val,test}/IMAGE
    CLASS/IMAGE, or IMAGE           split 80/10/10 by file name and seed

Classes are the sorted first-level folders, with images at any depth below; set `classes=false` if folders are not
classes. A single top folder in an archive is skipped. Files next to split folders are ignored; all others are rows,
rejected if they are not images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import Member
from soda_dist.data.formats.class_folders import ClassFolders, label_index, labelled_rows, open_classes
from soda_dist.data.formats.file_trees import FolderTree, Tree, file_index, open_tree
from soda_dist.data.formats.hashed_splits import ALIASES, SHARES, split_of
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source
from soda_dist.errors import UserError

LAYOUTS = "{train,val,test}/CLASS/IMAGE, {train,val,test}/IMAGE, CLASS/IMAGE, or IMAGE"


class Options(contract.Options):
    classes: bool | None = None
    """Whether the folders below the splits are classes; None = if two or more exist."""
    splits: Literal["folders", "drawn"] | None = None
    """Whether splits are folders or drawn; None = folders if a training folder exists."""


def open_source(uri: str, options: Options) -> Source:
    """Open the tree at `uri`.

    Raises:
        UserError: no files, or folders that contradict the options.
    """
    tree = open_tree(uri)
    top = "" if isinstance(tree, FolderTree) else _top(tree)
    splits = () if options.splits == "drawn" else _splits(tree, top)
    if splits and splits[0][0] != "train":
        got = f"{splits[0][1]} and no folder train"
        raise UserError(tree.uri, got, LAYOUTS, "rename the training folder to train, or set splits=drawn")
    if not splits and options.splits == "folders":
        raise UserError("splits", f"folders, but {tree.uri} has no split folders", LAYOUTS, "set splits=drawn")
    classes = _classes(tree, [prefix for _, prefix in splits] or [top], options.classes)
    if splits and classes:
        return open_classes(tree, splits, classes)
    label = Label(kind="class", names=classes)
    if splits:
        return ClassFolders(tree, splits, (), "label", label)
    source = DrawnFolders(tree, top, classes, options.seed)
    if not source.parts():
        raise UserError(tree.uri, "no files", LAYOUTS, "correct the path")
    return source


def _top(tree: Tree) -> str:
    """Common prefix of an archive's files, up to a training folder."""
    top = ""
    while len(folders := tree.folders(top)) == 1 and not tree.direct_files(top) and folders[0] not in ALIASES["train"]:
        top += f"{folders[0]}/"
    return top


def _splits(tree: Tree, top: str) -> tuple[tuple[str, str], ...]:
    folders, found = tree.folders(top), []
    for split, names in ALIASES.items():
        own = [name for name in names if name in folders]
        if len(own) > 1:
            raise UserError(tree.uri, f"both {own[0]} and {own[1]}", f"one folder of {split}", "rename one of them")
        found += [(split, f"{top}{own[0]}/")] if own else []
    return tuple(found)


def _classes(tree: Tree, prefixes: Sequence[str], wanted: bool | None) -> tuple[str, ...]:
    if wanted is False:
        return ()
    found = tuple(sorted({name for prefix in prefixes for name in tree.folders(prefix)}))
    if wanted and not found:
        raise UserError("classes", f"true, but {tree.uri} has no class folders", LAYOUTS, "set classes=false")
    return found if wanted or len(found) > 1 else ()


@dataclass(frozen=True)
class DrawnFolders:
    """A tree split by file name below `top`, so that other files do not matter and an archive splits like its folder.
    Each part lists the whole tree."""

    tree: Tree
    top: str
    classes: tuple[str, ...]
    seed: int

    @property
    def contents(self) -> Contents:
        return ClassFolders(self.tree, (), self.classes, "label", Label(kind="class", names=self.classes)).contents

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.top) for split, found in _drawn(self).items() if found]

    def index(self, part: Part) -> pa.Table:
        found = _drawn(self)[part.split]
        if not self.classes:
            return file_index(found)
        values = {name: value for value, name in enumerate(self.classes)}
        # For a file outside class folders this looks up its own name, which is not a class.
        return label_index(found, "label", [values.get(member.name[len(self.top) :].split("/")[0]) for member in found])

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return labelled_rows(self.tree, index, "label")


@lru_cache(maxsize=1)
def _drawn(source: DrawnFolders) -> dict[str, list[Member]]:
    drawn: dict[str, list[Member]] = {split: [] for split in SHARES}
    for member in source.tree.files(source.top):
        drawn[split_of(member.name.removeprefix(source.top), source.seed)].append(member)
    return drawn
