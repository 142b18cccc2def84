"""Evaluate a run: linear probe, nearest neighbours, samples. Writes eval/STEP/ and the run's report.

python jobs/evaluate.py --run URI --data URI --tasks probe,knn,samples [--step N]
"""

from soda_dist.cli import add_uri, parser, run, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    add_uri(arguments, "--run", "folder of the run")
    add_uri(arguments, "--data", "folder of prepared shards")
    arguments.add_argument("--tasks", default="probe,knn,samples", help="comma-separated: probe, knn, samples")
    arguments.add_argument("--step", default="latest", metavar="N|latest", help="the checkpoint to evaluate")
    arguments.add_argument(
        "overrides", nargs="*", metavar="evaluation.a=value", help="overrides of the evaluation section"
    )
    args = arguments.parse_intermixed_args(argv)

    from soda_dist.distributed.session import ray_session

    with ray_session(cpus=2):
        from soda_dist.distributed.evaluate import evaluate
        from soda_dist.report.report import write_report

        evaluate(args.run, args.data, args.tasks, args.step, args.overrides, say)
        return write_report(args.run)


if __name__ == "__main__":
    run(main)
