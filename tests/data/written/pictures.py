"""Small images in the formats that publishers use, and archives of them."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


def pixels(number: int, side: tuple[int, int] = (20, 30)) -> np.ndarray:
    """uint8 [h, w, 3], another for each number."""
    return np.random.default_rng(number).integers(0, 256, (*side, 3), np.uint8)


def picture(number: int, kind: str = "JPEG", mode: str = "RGB", side: tuple[int, int] = (20, 30)) -> bytes:
    """An encoded image."""
    sink = io.BytesIO()
    Image.fromarray(pixels(number, side)).convert(mode).save(sink, kind)
    return sink.getvalue()


def turned(number: int) -> bytes:
    """A JPEG that asks to be shown turned by a right angle."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray(pixels(number)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w", links: dict[str, str] | None = None) -> bytes:
    """A tar (`w`) or tar.gz (`w:gz`), symbolic links last."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return sink.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip, with an entry for each folder as zip programs write them."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files if "/" in name}):
            archive.writestr(f"{folder}/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()
