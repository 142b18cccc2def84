"""Convert a published data set, or rendered solids, to shards for training; or check existing shards.

Kinds: imagenet, celebahq, lsun, afhq, flowers102, nmr, shapenet, gso, smallnorb, shapes3d, mpi3d, cub, cifar10,
cifar100, folder, parquet, webdataset, multiview, synthetic; their options are documented in
soda_dist/data/sources/. Rerun to resume. Images stay as published unless --max-side or --quality is given.
  python jobs/prepare_data.py KIND --source DIR|FILE|URI --data URI [option=value ...]
  python jobs/prepare_data.py synthetic --data URI size=48 objects=4096
  python jobs/prepare_data.py --check URI [--images N|all]   check digests, counts and keys; decode N images per shard
"""

import argparse

from soda_dist.cli import add_uri, parser, run, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    arguments.add_argument("kind", metavar="KIND", nargs="?", help="data set, one of the kinds above")
    add_uri(arguments, "--source", "the data set as published", required=False)
    add_uri(arguments, "--data", "folder for the shards, created if missing", required=False)
    add_uri(arguments, "--check", "prepared shards to check", required=False)
    arguments.add_argument("--images", type=_count, default=16, metavar="N|all", help="decoded per shard (default 16)")
    arguments.add_argument("--max-side", metavar="N", help="re-encode as JPEG of at most N pixels a side")
    arguments.add_argument("--quality", metavar="Q", help="JPEG quality (default 90); without --max-side: keep sizes")
    arguments.add_argument("options", nargs="*", metavar="option=value", help="options of the kind")
    args = arguments.parse_intermixed_args(argv)
    flags = [f"{name}={value}" for name in ("max_side", "quality") if (value := getattr(args, name)) is not None]
    options = [*args.options, *flags]
    if (args.kind is None) == (args.check is None) or (args.kind is None) != (args.data is None):
        raise UserError("arguments", "none or too many", "KIND with --data, or --check", "use one of these")

    from soda_dist.data.shards import read_manifest
    from soda_dist.data.sources import parse_options
    from soda_dist.data.storage.folder import open_folder
    from soda_dist.distributed.runtime.cluster import ray_session

    # Reject bad input before Ray starts.
    read_manifest(open_folder(args.check)) if args.check else parse_options(args.kind, options)
    with ray_session(cpus=2):
        from soda_dist.data.preparation import check, prepare
        from soda_dist.distributed.runtime.actor_pool import ActorPool

        pool = ActorPool(say=say)
        if args.check:
            return check(args.check, args.images, pool, say)
        return prepare(args.kind, args.source, args.data, options, pool, say)


def _count(text: str) -> int | None:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text}; allowed: a number above 0, or all")
    return None if text == "all" else int(text)


if __name__ == "__main__":
    run(main)
