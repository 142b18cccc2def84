"""Train and evaluate the variants of an ablation over several seeds; write a table beside the paper's rows.

Rerun the same command to resume.
  python jobs/ablate.py --group NAME|FILE --out URI                                   small, on rendered data
  python jobs/ablate.py --group NAME|FILE --out URI --preset P --data URI [a.b=value ...]
"""

from soda_dist.cli import add_uri, parser, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    from soda_dist.config.ablation import group_names, load_group

    arguments = parser(__doc__)
    names = ", ".join(group_names())
    arguments.add_argument("--group", required=True, metavar="NAME|FILE", help=f"{names}, or a YAML file")
    add_uri(arguments, "--out", "folder of runs and results, created if missing")
    add_uri(arguments, "--data", "folder of prepared shards; default: rendered as the group says", required=False)
    arguments.add_argument("--preset", metavar="NAME|FILE", help="replaces the group's small setting; needs --data")
    arguments.add_argument("--seeds", metavar="N,N", help="replaces the group's seeds; finished ones are kept")
    arguments.add_argument("--concurrent", metavar="N", help="replaces the group's number of parallel runs")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="overrides for all variants")
    args = arguments.parse_intermixed_args(argv)
    group = load_group(args.group, {"seeds": args.seeds, "concurrent": args.concurrent})
    if args.preset and not args.data:
        raise UserError("--data", "nothing with --preset", "a folder of prepared shards", "add the data of the preset")
    base = group.base(args.preset, args.overrides)
    say("ablate: loading torch and Ray")

    from soda_dist.distributed.runtime.cluster import ray_session
    from soda_dist.distributed.runtime.resources import training_resources

    with ray_session(training_resources(base)["CPU"] * group.concurrent, say):
        from soda_dist.distributed.ablate import ablate

        return ablate(group, base, args.data, args.out, say)
