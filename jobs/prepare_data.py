"""Convert a published data set, or rendered solids, to shards for training; or check existing shards.

Kinds: imagenet, celebahq, lsun, afhq, flowers102, nmr, shapenet, gso, smallnorb, shapes3d, mpi3d, cub, cifar10,
cifar100, folder, parquet, webdataset, multiview, synthetic; KIND --help shows a kind's layouts and options. Rerun to
resume. Images stay as published unless --max-side or --quality is given.
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --data URI [option=value ...]
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --dry-run [option=value ...]   say what it holds, and stop
  python jobs/prepare_data.py synthetic --data URI size=48 objects=4096
  python jobs/prepare_data.py --check URI [--images N|all]   check digests, counts and keys; decode N images per shard
"""

from soda_dist.cli import add_uri, count_or_all, parser, run, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    if argv[1:] in (["-h"], ["--help"]) and not argv[0].startswith("-"):
        from soda_dist.data.sources import describe

        return describe(argv[0])
    arguments = parser(__doc__)
    arguments.add_argument("kind", metavar="KIND", nargs="?", help="data set, one of the kinds above")
    add_uri(arguments, "--source", "the data set as published", required=False)
    add_uri(arguments, "--data", "folder for the shards, created if missing", required=False)
    add_uri(arguments, "--check", "prepared shards to check", required=False)
    arguments.add_argument("--dry-run", action="store_true", help="say what the source holds; write nothing")
    arguments.add_argument("--images", type=count_or_all, default=16, metavar="N|all", help="decoded per shard (16)")
    arguments.add_argument("--max-side", metavar="N", help="re-encode as JPEG of at most N pixels a side")
    arguments.add_argument("--quality", metavar="Q", help="JPEG quality (default 90); without --max-side: keep sizes")
    arguments.add_argument("options", nargs="*", metavar="option=value", help="options of the kind")
    args = arguments.parse_intermixed_args(argv)
    flags = [f"{name}={value}" for name in ("max_side", "quality") if (value := getattr(args, name)) is not None]
    options = [*args.options, *flags]
    to = "" if args.dry_run else args.data
    if (args.kind is None) == (args.check is None) or (args.kind is None) != (to is None):
        raise UserError("arguments", "none or too many", "KIND with --data or --dry-run, or --check", "use one of them")

    from soda_dist.data.shards import read_manifest
    from soda_dist.data.sources import parse_options
    from soda_dist.data.storage.folder import open_folder
    from soda_dist.distributed.runtime.cluster import ray_session

    # Reject bad input before Ray starts.
    read_manifest(open_folder(args.check)) if args.check else parse_options(args.kind, options)
    with ray_session(cpus=2):
        from soda_dist.data.preparation import check, prepare, survey
        from soda_dist.distributed.runtime.actor_pool import ActorPool

        pool = ActorPool(say=say)
        if args.check:
            return check(args.check, args.images, pool, say)
        if args.dry_run:
            return survey(args.kind, args.source, options, pool, say)
        return prepare(args.kind, args.source, args.data, options, pool, say)


if __name__ == "__main__":
    run(main)
