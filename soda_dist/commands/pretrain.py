"""Pretrain a SODA encoder and denoiser on prepared shards.

Rerun the same command to resume from the last complete checkpoint.
  python jobs/pretrain.py --preset cifar10 --data URI --run URI train.steps=2000
"""

from soda_dist.cli import add_config, add_uri, config_of, parse, parser, say


def main(argv: list[str], preset: str | None = None, description: str | None = __doc__) -> str:
    arguments = parser(description)
    add_uri(arguments, "--data", "folder of prepared shards")
    add_uri(arguments, "--run", "folder of the run, created if missing")
    arguments.add_argument(
        "--accept-changed-data", action="store_true", help="resume although rows were added to or removed from --data"
    )
    arguments.add_argument(
        "--init-from", metavar="URI@STEP", help="begin with the EMA weights of a run's checkpoint or an exported folder"
    )
    add_config(arguments, preset)
    args = parse(arguments, argv)
    config = config_of(args)
    say("pretrain: loading torch and Ray")

    from soda_dist.data.shards import read_manifest
    from soda_dist.data.storage.folder import open_folder
    from soda_dist.distributed.runtime.cluster import ray_session
    from soda_dist.distributed.runtime.resources import training_resources
    from soda_dist.training.observers.trackers import check_trackers

    check_trackers(config.train.trackers)
    read_manifest(open_folder(args.data))  # reject bad input before Ray starts
    with ray_session(training_resources(config)["CPU"], say):
        from soda_dist.distributed.pretrain import pretrain

        return pretrain(
            config, args.data, args.run, say, accept_data=args.accept_changed_data, init_from=args.init_from
        )
