"""Evaluate checkpoints of a run, or any encoder; write eval/STEP/TASK.json, pictures and the report.

python jobs/evaluate.py --run URI --data URI --tasks probe,knn,dci,reconstruction [--step N]
python jobs/evaluate.py --encoder FILE|timm:NAME --data URI --out URI --tasks probe,knn,dci
"""

from soda_dist.cli import add_uri, parser, say
from soda_dist.errors import UserError

TASKS = """comma-separated: probe, knn, label_free, dci, reconstruction, samples, novel_views, fid, latents; default:
probe,knn, or label_free,samples on data without labels"""


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    add_uri(arguments, "--run", "folder of the run", required=False)
    add_uri(arguments, "--data", "folder of prepared shards")
    arguments.add_argument("--tasks", help=TASKS)
    arguments.add_argument("--step", default="latest", metavar="N|latest|all", help="checkpoints to evaluate")
    arguments.add_argument("--ema", choices=["true", "false"], default="true", help="use EMA weights")
    arguments.add_argument("--encoder", metavar="FILE|timm:NAME", help="encoder.safetensors file or timm model")
    add_uri(arguments, "--weights", "weights of the timm model; default: downloaded by timm", required=False)
    arguments.add_argument("--weights-sha256", metavar="HEX", help="required digest of the weights")
    add_uri(arguments, "--out", "folder for the results of --encoder", required=False)
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="of evaluation, sampling or scale")
    args = arguments.parse_intermixed_args(argv)
    if (args.run is None) == (args.encoder is None) or (args.encoder is None) != (args.out is None):
        raise UserError("--run, --encoder", "none or too many", "--run, or --encoder with --out", "use one of these")

    say("evaluate: loading torch and Ray")
    from soda_dist.data.shards import read_manifest
    from soda_dist.data.storage.folder import open_folder
    from soda_dist.distributed.runtime.cluster import ray_session

    read_manifest(open_folder(args.data))  # reject bad input before Ray starts
    with ray_session(2, say):
        from soda_dist.distributed.evaluate_on_ray import evaluate, evaluate_encoder
        from soda_dist.evaluation.model_sources import encoder_source
        from soda_dist.report.renewal import ReportWriter

        report = ReportWriter(args.run or args.out, say)
        if args.encoder is None:
            ema = args.ema == "true"
            evaluate(args.run, args.data, args.tasks, args.step, args.overrides, say, ema=ema, after_task=report.write)
        else:
            source = encoder_source(args.encoder, args.weights, args.weights_sha256)
            evaluate_encoder(source, args.data, args.tasks, args.out, args.overrides, say, after_task=report.write)
        return report.uri
