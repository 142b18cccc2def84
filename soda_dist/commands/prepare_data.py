"""Convert a published data set, or rendered solids, to shards for training; check, extend or reduce existing shards.

Kinds: imagenet, celebahq, lsun, afhq, flowers102, nmr, shapenet, gso, smallnorb, shapes3d, mpi3d, cub, cifar10,
cifar100, folder, parquet, webdataset, multiview, synthetic; KIND --help: layouts and options. Rerun to resume.
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --data URI [option=value ...]
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --dry-run [option=value ...]   say what it holds, and stop
  python jobs/prepare_data.py synthetic --data URI size=48 objects=4096
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --data URI --append   add the files that --data lacks
  python jobs/prepare_data.py --data URI --remove train/17,NAME   remove rows by key or name; @FILE: one per line
  python jobs/prepare_data.py --check URI [--images N|all]   check digests, counts and keys; decode N images per shard
"""

from soda_dist.cli import add_uri, as_started, count_or_all, parser, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    if argv[1:] in (["-h"], ["--help"]) and not argv[0].startswith("-"):
        from soda_dist.data.sources import describe

        return as_started(describe(argv[0]))
    arguments = parser(__doc__)
    arguments.add_argument("kind", metavar="KIND", nargs="?", help="data set, one of the kinds above")
    add_uri(arguments, "--source", "the data set as published", required=False)
    add_uri(arguments, "--data", "folder for the shards, created if missing", required=False)
    add_uri(arguments, "--check", "prepared shards to check", required=False)
    arguments.add_argument("--append", action="store_true", help="add to the prepared folder --data")
    arguments.add_argument("--remove", metavar="ROW,...|@FILE", help="remove these rows from --data")
    arguments.add_argument("--dry-run", action="store_true", help="say what the source holds; write nothing")
    arguments.add_argument("--images", type=count_or_all, default=16, metavar="N|all", help="decoded per shard")
    for name, text in (("max_side", "re-encode as JPEG, N pixels a side at most"), ("quality", "JPEG quality (90)")):
        flag, option = f"--{name.replace('_', '-')}", f"{name}={{}}".format
        arguments.add_argument(flag, action="append", dest="flags", type=option, default=[], metavar="N", help=text)
    arguments.add_argument("options", nargs="*", metavar="option=value", help="options of the kind")
    args = arguments.parse_intermixed_args(argv)
    options, modes = [*args.options, *args.flags], [each for each in (args.kind, args.check, args.remove) if each]
    if len(modes) != 1 or (args.data is None) != (args.dry_run or bool(args.check)) or args.append > bool(args.kind):
        raise UserError("arguments", "none or too many", "KIND or --remove with --data, or --check", "use one of them")

    say("prepare_data: loading Ray")
    from soda_dist.data import preparation
    from soda_dist.distributed.runtime.cluster import ray_session

    preparation.check_arguments(args.kind, options, args.check or args.data)  # before Ray starts
    with ray_session(2, say):
        from soda_dist.distributed.runtime.actor_pool import ActorPool

        pool = ActorPool(say=say)
        if args.check:
            return preparation.check(args.check, args.images, pool, say)
        if args.remove:
            return preparation.remove(args.data, preparation.parse_rows(args.remove), pool, say)
        if args.dry_run:
            return preparation.survey(args.kind, args.source, options, pool, say)
        act = preparation.append if args.append else preparation.prepare
        return act(args.kind, args.source, args.data, options, pool, say)
