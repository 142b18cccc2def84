"""Any tree of images: a folder, or a .zip, .tar or .tar.gz of one.

    {train,val,test}/CLASS/IMAGE    also `valid`, `validation`, `dev`, `training`, `testing`, in any case
    {train,val,test}/IMAGE
    CLASS/IMAGE, or IMAGE           split 80/10/10 by file name and seed

Classes are the sorted folders of train, with images at any depth below; set `classes=false` if folders are not classes.
A class of another split that train lacks is refused. A split without class folders beside classes of train has no
labels: `unlabelled`. A single top folder is skipped in an archive, and in a folder if splits are below it.

Folders beside the splits are left out if they hold no images; if they do, set `splits=folders` to leave them out. A
folder `train` beside other folders of the same form is a class, and splits are drawn. Files next to split folders are
ignored; all others are rows, rejected if they are not images. Tiny ImageNet as published is recognised, too.

Example:
    python jobs/prepare_data.py folder --source photos --data data/photos --max-side 512
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import pyarrow as pa

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import Member
from soda_dist.data.formats.class_folders import ClassFolders, class_names, label_index, labelled_rows
from soda_dist.data.formats.file_trees import IMAGE_ENDINGS, FolderTree, Tree, file_index, open_tree
from soda_dist.data.formats.hashed_splits import SHARES, split_called, split_of
from soda_dist.data.formats.published_names import one_form
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source
from soda_dist.data.sources import tiny_imagenet
from soda_dist.errors import UserError

LAYOUTS = "{train,val,test}/CLASS/IMAGE, {train,val,test}/IMAGE, CLASS/IMAGE, or IMAGE"
PLAIN = "images"
"""Name of a folder that groups files and is no class, unless train has it too."""


class Options(contract.LabelOptions):
    classes: bool | None = None
    """Whether the folders below the splits are classes; None = if two or more exist."""
    splits: Literal["folders", "drawn"] | None = None
    """Whether splits are folders or drawn; None = folders if a training folder exists."""


class Layout(NamedTuple):
    """How a tree was understood: (split, prefix) of split folders, none = drawn, and lines that say so."""

    splits: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def open_source(uri: str, options: Options) -> Source:
    """Open the tree at `uri`.

    Raises:
        UserError: no files, folders that contradict the options or each other, or folders of an unclear meaning.
    """
    tree = open_tree(uri)
    top = _top(tree)
    splits, notes = _layout(tree, top, options)
    if splits and options.classes is not False and (tiny := tiny_imagenet.find(tree, splits, options)):
        return tiny
    keep = options.unlabelled == "import"
    if splits:
        classes, said = _split_classes(tree, splits, options.classes)
        label = Label(kind="class", names=classes)
        return ClassFolders(tree, splits, classes, "label", label, unlabelled=keep, notes=(*notes, *said))
    classes = _drawn_classes(tree, top, options)
    source = DrawnFolders(tree, top, classes, options.seed, keep, notes)
    if not source.parts():
        raise UserError(tree.uri, "no files", LAYOUTS, "correct the path")
    return source


def _top(tree: Tree) -> str:
    """Common prefix of all images, up to a training folder; in a folder only if splits are below it."""
    top = ""
    while len(folders := tree.folders(top)) == 1 and not _images(tree.direct_files(top)):
        inner = f"{top}{folders[0]}/"
        below = {split_called(name) for name in tree.folders(inner)}
        if split_called(folders[0]) == "train" or (isinstance(tree, FolderTree) and "train" not in below):
            break
        top = inner
    return top


def _images(found: Sequence[Member]) -> bool:
    return any(member.name.lower().endswith(IMAGE_ENDINGS) for member in found)


def _layout(tree: Tree, top: str, options: Options) -> Layout:
    """Tell split folders from class folders and from others."""
    folders = tree.folders(top)
    named = [(name, split) for name in folders if (split := split_called(name))]
    others = [name for name in folders if not split_called(name)]
    if options.splits == "drawn" or not named:
        if options.splits == "folders":
            raise UserError("splits", f"folders, but {tree.uri} has no split folders", LAYOUTS, "set splits=drawn")
        return Layout(())
    if [split for _, split in named] == ["train"] and options.splits is None and _are_alike(tree, top, folders):
        return Layout((), (f"{named[0][0]} is read as a class, like {others[0]}: set splits=folders if it is a split",))
    for split in SHARES:
        own = [name for name, found in named if found == split]
        if len(own) > 1:
            raise UserError(tree.uri, f"both {own[0]} and {own[1]}", f"one folder of {split}", "rename one of them")
    if "train" not in dict(named).values():
        got = f"{named[0][0]}/ and no folder train"
        raise UserError(tree.uri, got, LAYOUTS, "rename the training folder to train, or set splits=drawn")
    holding = next((name for name in others if _images(tree.files(f"{top}{name}/"))), None)
    if holding and options.splits is None:
        got = f"a folder {holding} with images beside the split {named[0][0]}"
        remedy = f"set splits=folders to leave {holding} out, or splits=drawn if all folders are classes"
        raise UserError(tree.uri, got, "folders of splits alone, or of classes alone", remedy)
    beside = [*others, *(member.name.removeprefix(top) for member in tree.direct_files(top))]
    notes = (f"left out beside the splits: {', '.join(beside[:5])}{' ...' * (len(beside) > 5)}",) if beside else ()
    prefix_of = {split: f"{top}{name}/" for name, split in named}
    return Layout(tuple((split, prefix_of[split]) for split in SHARES if split in prefix_of), notes)


def _are_alike(tree: Tree, top: str, folders: Sequence[str]) -> bool:
    """Whether three or more folders hold images in the same way, as classes do."""
    forms = {(_images(tree.direct_files(f"{top}{name}/")), *tree.folders(f"{top}{name}/")) for name in folders}
    return len(folders) > 2 and forms in ({(True,)}, {(False, PLAIN)})


def _split_classes(
    tree: Tree, splits: Sequence[tuple[str, str]], wanted: bool | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the classes of train, and what to say of them."""
    if wanted is False:
        return (), ()
    have = {split: class_names(tree.folders(prefix)) for split, prefix in splits}
    classes = have["train"]
    for split, names in have.items():
        unknown = [name for name in names if name not in classes and names != (PLAIN,)]
        if unknown and (classes or len(names) > 1 or wanted):
            got, allowed = f"the class {unknown[0]} in {split}, which train lacks", "classes of train in every split"
            raise UserError(tree.uri, got, allowed, "correct the folders, or set classes=false")
    if wanted and not classes:
        raise UserError("classes", f"true, but {tree.uri} has no class folders", LAYOUTS, "set classes=false")
    if len(classes) == 1 and not wanted:
        return (), (f"no labels: {classes[0]} is the only folder of train, set classes=true if it is a class",)
    return classes, ()


def _drawn_classes(tree: Tree, top: str, options: Options) -> tuple[str, ...]:
    if options.classes is False:
        return ()
    folders = tree.folders(top)
    if options.classes is None and len(folders) > 1 and all(map(split_called, folders)):
        got = f"drawn, and folders {', '.join(folders)}"
        raise UserError("splits", got, LAYOUTS, "set classes=false too, or classes=true if these are classes")
    if options.classes and not folders:
        raise UserError("classes", f"true, but {tree.uri} has no class folders", LAYOUTS, "set classes=false")
    found = class_names(folders)
    return found if options.classes or len(found) > 1 else ()


@dataclass(frozen=True)
class DrawnFolders:
    """A tree split by file name below `top`, so that other files do not matter and an archive splits like its folder.
    Each part lists the whole tree. Attributes as those of `ClassFolders`."""

    tree: Tree
    top: str
    classes: tuple[str, ...]
    seed: int
    unlabelled: bool
    notes: tuple[str, ...]

    @property
    def contents(self) -> Contents:
        label = Label(kind="class", names=self.classes)
        return replace(ClassFolders(self.tree, (), self.classes, "label", label, notes=self.notes).contents, drawn=True)

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.top) for split, found in _drawn(self).items() if found]

    def index(self, part: Part) -> pa.Table:
        found = _drawn(self)[part.split]
        if not self.classes:
            return file_index(found)
        values = {name: value for value, name in enumerate(self.classes)}
        # For a file outside class folders this looks up its own name, which is not a class.
        firsts = (one_form(member.name[len(self.top) :].split("/")[0]) for member in found)
        return label_index(found, "label", [values.get(first) for first in firsts])

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return labelled_rows(self.tree, index, "label", unlabelled=self.unlabelled)


@lru_cache(maxsize=1)
def _drawn(source: DrawnFolders) -> dict[str, list[Member]]:
    drawn: dict[str, list[Member]] = {split: [] for split in SHARES}
    for member in source.tree.files(source.top):
        drawn[split_of(member.name.removeprefix(source.top), source.seed)].append(member)
    return drawn
