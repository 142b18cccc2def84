"""Lists of published files in any storage: without hidden names, and bounded whatever symbolic links a folder has.

A link to a folder that it lies in is not followed. Other links are, since data sets are often made of links.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from soda_dist.data.formats.published_names import is_hidden
from soda_dist.data.storage.folder import Entry, Folder
from soda_dist.errors import UserError


def list_files(folder: Folder, prefix: str = "") -> list[Entry]:
    """List all files, at any depth, whose name starts with `prefix`, sorted; empty if the folder does not exist.

    Raises:
        UserError: names that no file system can have, or storage that cannot be read.
    """
    if not folder.is_local:
        return [entry for entry in folder.list(prefix) if not is_hidden(entry.name)]
    base = prefix.rpartition("/")[0]
    return sorted(entry for entry in _below(folder, base) if entry.name.startswith(prefix))


def list_direct_files(folder: Folder, name: str = "") -> list[Entry]:
    """List the files directly below the folder `name`, sorted; empty if it does not exist."""
    return [entry for entry in folder.files(name) if not is_hidden(entry.name)]


def list_folders(folder: Folder, name: str = "") -> list[str]:
    """List the names of the folders directly below `name`, sorted."""
    found = [inner for inner in folder.folders(name) if not is_hidden(inner)]
    if not folder.is_local:
        return found
    place = Path(folder.uri) / name
    return [inner for inner in found if not _leads_up(place / inner, os.path.realpath(place))]


def refuse_repeats(folder: Folder, names: Iterable[str]) -> None:
    """Check that no symbolic link lists a file twice among `names`; asks storage about folders and links alone.

    Raises:
        UserError: a link to a file or folder that is listed itself.
    """
    if not folder.is_local:
        return
    root = os.path.realpath(folder.uri)
    bases: dict[str, set[str]] = {}
    for name in names:
        place, _, base = name.rpartition("/")
        bases.setdefault(place, set()).add(base)
    first: dict[str, str] = {}
    for place in sorted(bases, key=lambda place: (os.path.realpath(Path(root) / place) != f"{root}/{place}", place)):
        real = os.path.realpath(Path(root) / place)
        if first.setdefault(real, place) != place and bases[place] & bases[first[real]]:
            raise _repeat(folder, place, first[real])
    targets: dict[str, str] = {}
    for place in sorted(bases):
        for base in sorted(bases[place] & _links(Path(root) / place)):
            name, target = f"{place}/{base}".lstrip("/"), os.path.realpath(Path(root) / place / base)
            at, _, end = target.rpartition("/")
            if at in first and end in bases[first[at]]:
                raise _repeat(folder, name, f"{first[at]}/{end}".lstrip("/"))
            if targets.setdefault(target, name) != name:
                raise _repeat(folder, name, targets[target])


def _repeat(folder: Folder, name: str, other: str) -> UserError:
    got = f"a link to the files of {other or 'the folder itself'}"
    return UserError(folder.file_uri(name), got, "each file once", "remove the link, or the other name")


def _links(place: Path) -> set[str]:
    try:
        with os.scandir(place) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()  # its files are rejected when they are read


def _below(folder: Folder, base: str) -> list[Entry]:
    """List the files below a folder of this machine."""
    with folder.explained(base):
        try:
            return [*_walk(folder, Path(folder.uri) / base, base, (os.path.realpath(Path(folder.uri) / base),))]
        except FileNotFoundError:
            return []


def _walk(folder: Folder, place: Path, name: str, trail: Sequence[str]) -> Iterator[Entry]:
    """List what is below `place`, called `name`; `trail` has its real path last, after those where links were taken."""
    with os.scandir(place) as found:
        entries = [*found]
    for entry in entries:
        inner = f"{name}/{entry.name}".lstrip("/")
        if is_hidden(entry.name):
            continue
        if not _is_utf8(entry.name):
            got = f"a file whose name is not UTF-8: {os.fsencode(entry.name)!r}"
            raise UserError(folder.file_uri(name), got, "names in UTF-8", "rename it")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, Path(entry.path), inner, (*trail[:-1], f"{trail[-1]}/{entry.name}"))
        elif os.path.isdir(entry.path):  # noqa: PTH112 - unlike the entry's own test, false for a link to itself
            if not any(_leads_up(entry.path, real) for real in trail):
                yield from _walk(folder, Path(entry.path), inner, (*trail, os.path.realpath(entry.path)))
        elif os.path.isfile(entry.path):  # noqa: PTH113
            yield Entry(inner, entry.stat().st_size)
        elif entry.is_symlink():
            if os.path.islink(os.path.realpath(entry.path)):  # noqa: PTH114 - realpath stops inside a ring of links
                raise UserError(folder.file_uri(inner), "a link to itself", "links to files", "remove the link")
            yield Entry(inner, 0)  # its target is missing: a row that the import rejects


def _leads_up(link: str | Path, real: str) -> bool:
    """Whether the folder with the real path `real` lies in what `link` names."""
    target = os.path.realpath(link)
    return target == real or real.startswith(target.rstrip("/") + "/")


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
