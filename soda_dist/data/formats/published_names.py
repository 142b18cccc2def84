"""Names in published data: which are hidden, and the one form in which they are compared."""

import unicodedata

HIDDEN = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
"""Folders that macOS, Synology, Windows and ext4 add."""
HIDDEN_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def is_hidden(name: str) -> bool:
    """Whether a path, with `/` between parts, is an operating system's and no part of the data."""
    parts = [part for part in name.casefold().split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part in HIDDEN for part in parts) or not HIDDEN_FILES.isdisjoint(parts[-1:])


def one_form(name: str) -> str:
    """Normalise to NFC: macOS stores a letter and its accent apart, and other systems as one character."""
    return unicodedata.normalize("NFC", name)
