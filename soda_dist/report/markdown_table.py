"""Padded Markdown tables."""

from collections.abc import Sequence


def pad_table(rows: Sequence[Sequence[str]], names: int) -> list[str]:
    """Format rows as a padded Markdown table; the first `names` columns are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        texts = (text.ljust(width) if at < names else text.rjust(width) for at, (text, width) in enumerate(cells))
        lines.append(f"| {' | '.join(texts)} |")
    rule = "|".join("-" * (width + 2) if at < names else "-" * (width + 1) + ":" for at, width in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]
