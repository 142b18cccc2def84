"""LSUN's databases, written by the lmdb package: keys are SHA-1 digests, values encoded images; and their .zips."""

import hashlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmdb

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture, zip_of

COUNTS = {"bedroom_train_lmdb": 30, "bedroom_val_lmdb": 3, "cat": 60}


def key(folder: str, number: int) -> bytes:
    return hashlib.sha1(f"{folder} {number}".encode()).hexdigest().encode()


def images(folder: str) -> dict[bytes, bytes]:
    """WebP and JPEG, of a few hundred bytes to some pages."""
    found = {}
    for number in range(COUNTS[folder]):
        side = (8, 8) if number % 3 else (60, 80)
        found[key(folder, number)] = picture(number, "WEBP" if number % 2 else "JPEG", side=side)
    return found


def database(records: Mapping[bytes, bytes], deleted: Sequence[bytes] = (), per_transaction: int = 1000) -> bytes:
    """data.mdb with these records, of which some are deleted at the end."""
    with tempfile.TemporaryDirectory() as place:
        with lmdb.open(place, map_size=2**30, sync=False) as environment:
            pairs = list(records.items())
            for start in range(0, len(pairs), per_transaction):
                with environment.begin(write=True) as transaction:
                    for name, value in pairs[start : start + per_transaction]:
                        transaction.put(name, value)
            with environment.begin(write=True) as transaction:
                for name in deleted:
                    assert transaction.delete(name)
        return Path(place, "data.mdb").read_bytes()


def write(folder: Folder) -> None:
    """A scene category in its published splits, and an object category."""
    for name in COUNTS:
        folder.write(f"{name}/data.mdb", database(images(name)))
        folder.write(f"{name}/lock.mdb", b"")


def in_zips(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> dict[str, bytes]:
    """Each folder in a .zip of its name."""
    folders = dict.fromkeys(name.partition("/")[0] for name in files)
    return {
        f"{folder}.zip": zip_of({n: data for n, data in files.items() if n.startswith(f"{folder}/")}, method)
        for folder in folders
    }
