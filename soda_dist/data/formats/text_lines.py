"""Text files of any system: with a byte-order mark or without, any ends of lines, blank lines."""

import codecs

from soda_dist.data.formats.published_names import one_form
from soda_dist.errors import UserError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte-order mark, without the mark and in Unicode's composed form (NFC).

    Raises:
        UnicodeDecodeError: any other bytes.
    """
    encoding = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "utf-8")
    return one_form(data.decode(encoding))


def text_lines(data: bytes, uri: str) -> list[str]:
    """List the lines of a text file that are not blank, without spaces at their ends.

    Raises:
        UserError: bytes that are no text; names `uri`.
    """
    try:
        text = decode_text(data)
    except UnicodeDecodeError:
        raise UserError(uri, "text that is not UTF-8", "UTF-8 text", "save as UTF-8") from None
    # Not splitlines, which would also cut at the rarer separators that a name may contain.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]
