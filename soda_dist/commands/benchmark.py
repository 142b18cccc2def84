"""Benchmark this machine: ingest, import, training, checkpoints, features, embedding, DCI, sampling.

Prints ratios of rates measured in one run, with the rates; --out writes them to benchmark.json.
  python jobs/benchmark.py data   [--small URI] [--photographs URI [--reencoded URI]]  vs DataLoader, process pool
  python jobs/benchmark.py import --source URI                          images to shards, vs reading and hashing
  python jobs/benchmark.py start  --data URI [--preset NAME] [a.b=value ...]  seconds to the first batch, limit 10
  python jobs/benchmark.py train  [--data URI] [a.b=value ...]          vs bare PyTorch
  python jobs/benchmark.py features [--data URI] [--preset NAME] [a.b=value ...]  vs a plain loop; two actors
  python jobs/benchmark.py embed  [--data URI] [--preset NAME] [a.b=value ...]  files to embeddings, vs a plain loop
  python jobs/benchmark.py dci    [rows=N] [codes=N] [rounds=N]          vs scikit-learn
  python jobs/benchmark.py sample [--device cuda] [--preset NAME] [a.b=value ...]  vs diffusers; bf16, compiled
  python jobs/benchmark.py step   [--device cuda] [--preset NAME] [a.b=value ...]  bf16, compiled, share of a matmul
  python jobs/benchmark.py checkpoint [--device cuda] [--preset NAME] [a.b=value ...]  pause, vs a step; limit 1
"""

from soda_dist.cli import add_uri, parser, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    choices = ["data", "import", "start", "train", "features", "embed", "dci", "sample", "step", "checkpoint"]
    arguments.add_argument("what", choices=choices, help="benchmark to run")
    add_uri(arguments, "--photographs", "data: prepared shards of photographs; default: skipped", required=False)
    add_uri(arguments, "--reencoded", "data: the same, re-encoded at import; default: skipped", required=False)
    add_uri(arguments, "--small", "data: prepared shards of 32 px images; default: rendered", required=False)
    add_uri(arguments, "--source", "import: a folder of images", required=False)
    add_uri(arguments, "--data", "start, train, features, embed: prepared shards; default: rendered", required=False)
    add_uri(arguments, "--out", "folder for benchmark.json; default: not written", required=False)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="sample, step, checkpoint")
    arguments.add_argument("--preset", default="cifar10", metavar="NAME|FILE", help="all but data, import, train, dci")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="overrides; for dci: rows, codes, rounds")
    args = arguments.parse_intermixed_args(argv)
    if (wanted := {"import": "source", "start": "data"}.get(args.what)) and not getattr(args, wanted):
        raise UserError(f"--{wanted}", "nothing", "a folder", f"add it, see {arguments.prog} {args.what} -h")

    say("benchmark: loading torch and Ray")
    from soda_dist.benchmarks import harness, sampling, update
    from soda_dist.benchmarks.checkpoint_pause import measure_checkpoint
    from soda_dist.distributed.runtime.cluster import ray_session

    on_device = {"sample": sampling.measure_sampling, "step": update.measure_step, "checkpoint": measure_checkpoint}
    if args.what in on_device:
        return harness.conclude(on_device[args.what](args.preset, args.overrides, args.device, say), args.out, say)
    from soda_dist.benchmarks import dci, embed, features, ingest, startup, training_loop

    if args.what == "embed":
        return harness.conclude(embed.measure_embed(args.preset, args.data, args.overrides, say), args.out, say)
    with ray_session(4, say):
        measures = {
            "data": lambda: ingest.measure_data(args.small, args.photographs, args.reencoded, say),
            "import": lambda: startup.measure_import(args.source, say),
            "start": lambda: startup.measure_start(args.preset, args.data, args.overrides, say),
            "train": lambda: training_loop.measure_train(args.data, args.overrides, say),
            "features": lambda: features.measure_features(args.preset, args.data, args.overrides, say),
            "dci": lambda: dci.measure_dci(args.overrides, say),
        }
        return harness.conclude(measures[args.what](), args.out, say)
