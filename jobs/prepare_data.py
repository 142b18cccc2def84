"""Turn a published data set, or rendered solids, into shards that training streams from.

Safe to stop and run again.
  python jobs/prepare_data.py imagenet  --source DIR|TAR|URI --data URI
  python jobs/prepare_data.py cifar10   --source DIR|URI     --data URI
  python jobs/prepare_data.py synthetic                      --data URI size=48 objects=4096
"""

from soda_dist.cli import add_uri, parser, run, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    arguments.add_argument("kind", metavar="KIND", help="imagenet, cifar10 or synthetic")
    add_uri(arguments, "--source", "the data set as published", required=False)
    add_uri(arguments, "--data", "folder for the shards, made if absent")
    arguments.add_argument("options", nargs="*", metavar="option=value", help="options of the kind")
    args = arguments.parse_intermixed_args(argv)

    from soda_dist.data.sources import parse_options

    parse_options(args.kind, args.options)  # a mistake is told before Ray starts

    from soda_dist.distributed.session import ray_session

    with ray_session(cpus=2):
        from soda_dist.distributed.prepare import prepare

        return prepare(args.kind, args.source, args.data, args.options, say)


if __name__ == "__main__":
    run(main)
