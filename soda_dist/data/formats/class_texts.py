"""Classes written as text, by number or by name: which of the two a text means.

Names such as 2 or 10 can be mistaken for numbers. Where a name is also the number of another class, the texts of the
whole data set decide: they are numbers if all of them are.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from soda_dist.data.formats.published_names import one_form
from soda_dist.data.formats.table_labels import lacks_label
from soda_dist.data.formats.text_lines import decode_text

DIGITS = re.compile(r"[0-9]{1,9}")
JSON = "json:"
CLASS_NAMES = "classes.txt"
"""File of class names, one per line, that a user may put beside tars or tables."""


@dataclass(frozen=True)
class ClassTexts:
    """Reader of class members.

    Attributes:
        classes: class names.
        field: of a JSON object that holds the class; empty = the text is the class.
        numbers, names: whether texts may be class numbers, and class names.
    """

    classes: tuple[str, ...]
    field: str = ""
    numbers: bool = True
    names: bool = True

    @property
    def ambiguous(self) -> str | None:
        """The first name that is the number of another class; None without any."""
        return next((name for at, name in enumerate(self.classes) if self._number(name) not in (None, at)), None)

    def read(self, data: bytes) -> tuple[int | None, str | None]:
        """Return the class of a member, None = no label or an unknown one, and the problem of an unknown one."""
        unknown = f"a label outside the {len(self.classes)} classes"
        try:
            value = self._value(data)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None, unknown
        if lacks_label(value) or value == "-1":
            return None, None
        found: int | None = None
        if isinstance(value, str):
            named = self.names and value in self.classes
            found = self.classes.index(value) if named else self._number(value) if self.numbers else None
        elif isinstance(value, int | float) and not isinstance(value, bool):  # accepts 3.0, but neither 1.7 nor true
            found = int(value) if 0 <= value < len(self.classes) and value % 1 == 0 else None
        return found, unknown if found is None else None

    def settled(self, members: Iterable[bytes]) -> "ClassTexts":
        """Decide by all class members of a data set whether texts are numbers or names."""
        for data in members:
            try:
                value = self._value(data)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if isinstance(value, str) and value not in ("", "-1") and self._number(value) is None:
                return ClassTexts(self.classes, self.field, numbers=False)
        return ClassTexts(self.classes, self.field, names=False)

    def _value(self, data: bytes) -> Any:
        text = decode_text(data).strip()
        value = json.loads(text)[self.field] if self.field else text
        return one_form(value).strip() if isinstance(value, str) else value

    def _number(self, text: str) -> int | None:
        number = int(text) if DIGITS.fullmatch(text) else len(self.classes)
        return number if number < len(self.classes) else None
