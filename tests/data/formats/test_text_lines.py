"""Text files of any system come out as the same lines."""

import pytest

from soda_dist.data.formats.text_lines import decode_text, text_lines
from soda_dist.errors import UserError

TEXT = "cat\ncaf\u00e9 au lait\nline\u2028separator\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode("utf-8-sig"),
        TEXT.replace("\n", " \n\n\t\n").encode(),
        TEXT.replace("\u00e9", "e\u0301").encode(),
        TEXT.rstrip().encode(),
    ],
)
def test_lines(data: bytes) -> None:
    assert text_lines(data, "list.txt") == ["cat", "caf\u00e9 au lait", "line\u2028separator"]


def test_what_is_no_text() -> None:
    assert text_lines(b"", "x") == text_lines(b"\xef\xbb\xbf\r\n\r\n", "x") == []
    assert decode_text(b"\xef\xbb\xbf3\r\n") == "3\r\n"
    with pytest.raises(UserError, match=r"^list\.txt: got text that is not UTF-8"):
        text_lines(b"caf\xe9", "list.txt")
