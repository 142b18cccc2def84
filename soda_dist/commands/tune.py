"""Search the encoder's learning-rate ratio, masking rates and guidance; write trials.json, best.yaml and a plot.

Rerun the same command to resume.
  python jobs/tune.py --preset demo --search ratio_guidance_masking --data URI --run URI
"""

from soda_dist.cli import add_config, add_uri, config_of, parse, parser, say


def main(argv: list[str]) -> str:
    from soda_dist.config.search import load_search, search_names

    arguments = parser(__doc__)
    names = ", ".join(search_names())
    arguments.add_argument("--search", required=True, metavar="NAME|FILE", help=f"{names}, or a YAML file")
    add_uri(arguments, "--data", "folder of prepared shards")
    add_uri(arguments, "--run", "folder of the sweep, created if missing")
    add_config(arguments, None)
    args = parse(arguments, argv)
    config = config_of(args)
    say("tune: loading torch and Ray")

    from soda_dist.data.shards import read_manifest
    from soda_dist.data.storage.folder import open_folder
    from soda_dist.distributed.runtime.cluster import ray_session
    from soda_dist.distributed.runtime.resources import training_resources

    read_manifest(open_folder(args.data))  # reject bad input before Ray starts
    search = load_search(args.search)
    with ray_session(training_resources(config)["CPU"] * search.concurrent + 1, say):  # +1: Ray Tune's trial actors
        from soda_dist.distributed.tune import sweep

        return sweep(config, search, args.data, args.run, say)
