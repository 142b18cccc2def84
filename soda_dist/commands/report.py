"""Write a run's report.html anew from its folder, at any time: while it trains, after it, or after a change of files.

python jobs/report.py --run URI [--out FILE]
"""

from soda_dist.cli import add_uri, parser


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    add_uri(arguments, "--run", "folder of the run, or of the results of an encoder")
    arguments.add_argument("--out", metavar="FILE", help="path or URI of the page; default: report.html in the folder")
    args = arguments.parse_args(argv)

    from soda_dist.data.storage.folder import locate
    from soda_dist.report.page import render, write_report
    from soda_dist.runs.folder import open_run, require_run

    run = open_run(args.run)
    require_run(run)
    if args.out is None:
        return write_report(args.run)
    folder, name = locate(args.out)
    folder.write(name, render(run).encode())
    return folder.file_uri(name)
