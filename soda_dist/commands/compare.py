"""Print or write a table of the paper with rows for our runs and notes on their differences.

python jobs/compare.py --runs URI,URI --table 1 [--format markdown|latex|html] [--step N] [--out URI]
"""

from soda_dist.cli import URI_HELP, add_uri, parser, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", required=True, metavar="URI,URI", help=f"folders of evaluated runs ({URI_HELP})")
    arguments.add_argument("--table", required=True, metavar="N", help="the paper's table, such as 1")
    shapes = "markdown, latex, or html, which adds curves, differences and pictures"
    arguments.add_argument("--format", default="markdown", metavar="F", help=shapes)
    arguments.add_argument("--step", default="latest", metavar="N|latest", help="an evaluated step of every run")
    add_uri(arguments, "--out", "folder for compare-N.md, .tex or .html; default: print", required=False)
    args = arguments.parse_args(argv)
    runs = [uri.strip() for uri in args.runs.split(",")]

    from soda_dist.report.comparison import compare, write_comparison

    if args.out:
        return write_comparison(runs, args.table, args.format, args.step, args.out)
    say(compare(runs, args.table, args.format, args.step).rstrip("\n"))
    return ""
