"""Measure this machine: ingest against a torch DataLoader, the training loop against bare PyTorch.

Every figure is a ratio of one run, printed beside the rates it is made of; benchmark.json holds them all.
  python jobs/benchmark.py data  [--small URI] [--photographs URI]
  python jobs/benchmark.py train [--data URI] [a.b=value ...]
"""

from soda_dist.cli import add_uri, parser, run, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["data", "train"], help="what is measured")
    add_uri(arguments, "--photographs", "data: prepared shards of photographs; none: left out", required=False)
    add_uri(arguments, "--small", "data: prepared shards of 32 px images; none: rendered ones", required=False)
    add_uri(arguments, "--data", "train: prepared shards; none: rendered ones", required=False)
    add_uri(arguments, "--out", "folder for benchmark.json; none: not written", required=False)
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="overrides of the preset cifar10")
    args = arguments.parse_intermixed_args(argv)

    from soda_dist.distributed.session import ray_session

    with ray_session(cpus=4):
        from soda_dist.distributed import benchmark

        if args.what == "data":
            results = benchmark.measure_data(args.small, args.photographs, say)
        else:
            results = benchmark.measure_train(args.data, args.overrides, say)
        return benchmark.conclude(results, args.out, say)


if __name__ == "__main__":
    run(main)
