"""Evaluate checkpoints of a run on data with splits and labels; writes eval/STEP/TASK.json, pictures and the report.

python jobs/evaluate.py --run URI --data URI --tasks probe,knn,dci,reconstruction,samples,novel_views,fid [--step N]
"""

from soda_dist.cli import add_uri, parser, run, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    add_uri(arguments, "--run", "folder of the run")
    add_uri(arguments, "--data", "folder of prepared shards")
    arguments.add_argument("--tasks", default="probe,knn,reconstruction", help="comma-separated names of tasks")
    arguments.add_argument("--step", default="latest", metavar="N|latest|all", help="checkpoints to evaluate")
    arguments.add_argument("--ema", choices=["true", "false"], default="true", help="the running mean of the weights")
    arguments.add_argument(
        "overrides", nargs="*", metavar="a.b=value", help="overrides of the sections evaluation, sampling and scale"
    )
    args = arguments.parse_intermixed_args(argv)

    from soda_dist.distributed.session import ray_session

    with ray_session(cpus=2):
        from soda_dist.distributed.evaluate import evaluate
        from soda_dist.report.report import write_report

        evaluate(args.run, args.data, args.tasks, args.step, args.overrides, say, ema=args.ema == "true")
        return write_report(args.run)


if __name__ == "__main__":
    run(main)
