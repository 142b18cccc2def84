"""Encode a folder of images, or a split of prepared data, and write their embeddings to one file. Needs no labels.

The output has a row for each image: name, embedding, error. Rerun the same command to resume.
  python jobs/embed.py --encoder RUN|FILE|timm:NAME --images DIR|URI --out embeddings.parquet [--workers N]
  python jobs/embed.py --encoder RUN --images DATA --split test --out embeddings.npz
"""

import os

from soda_dist.cli import add_uri, parser, say
from soda_dist.errors import UserError


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    known = "run, RUN/checkpoints/STEP, folder of an export, encoder.safetensors, or timm:NAME"
    arguments.add_argument("--encoder", required=True, metavar="RUN|FILE|timm:NAME", help=known)
    add_uri(arguments, "--images", "folder of images, .zip or .tar of one, or prepared shards")
    add_uri(arguments, "--out", "file to write; its ending chooses the format: .parquet, .npz")
    arguments.add_argument("--split", metavar="NAME", help="split of prepared shards")
    arguments.add_argument("--step", type=int, metavar="N", help="checkpoint of a run (default: the latest)")
    arguments.add_argument("--ema", choices=["true", "false"], default="true", help="use EMA weights (default true)")
    add_uri(arguments, "--weights", "weights of the timm model; default: downloaded by timm", required=False)
    arguments.add_argument("--weights-sha256", metavar="HEX", help="required digest of the weights")
    workers = "processes, or actors on a Ray cluster (default: this process, or all that fit)"
    arguments.add_argument("--workers", type=int, default=0, metavar="N", help=workers)
    arguments.add_argument("--device", metavar="cpu|cuda", help="without a cluster; default: cuda if available")
    args = arguments.parse_args(argv)
    cluster = os.environ.get("RAY_ADDRESS")  # set by the user, or by ray job submit
    if cluster and args.device:
        raise UserError("--device", f"{args.device} with RAY_ADDRESS", "nothing on a cluster", "leave it out")

    kept = vars(args) | {"ema": args.ema == "true", "say": say}
    if cluster:
        from soda_dist.distributed.embed_on_ray import embed_on_ray

        return embed_on_ray(**kept)
    from soda_dist.inference.embedding import embed

    return embed(**kept)
