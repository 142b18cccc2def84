"""Write a checkpoint for timm, for ONNX runtimes or for the Hugging Face Hub.

python jobs/export.py --run URI --to timm --out FOLDER [--step N]
python jobs/export.py --run URI --to onnx --out FILE.onnx [--int8 [--data URI]]
python jobs/export.py --run URI --to hub --out FOLDER [--license ID] [--push OWNER/NAME]
"""

from soda_dist.cli import add_uri, parser, say
from soda_dist.errors import UserError

FORMATS = ("timm", "onnx", "hub")
ONLY = {"int8": "onnx", "license": "hub", "push": "hub"}
"""Option -> the only format that has it."""


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    add_uri(arguments, "--run", "folder of the run")
    arguments.add_argument("--to", required=True, choices=FORMATS, help="the encoder (timm, onnx) or the model (hub)")
    add_uri(arguments, "--out", "folder, or for onnx a file NAME.onnx")
    arguments.add_argument("--step", default="latest", metavar="N|latest", help="a checkpoint; EMA weights")
    arguments.add_argument("--int8", action="store_true", help="quantise the ONNX file to 8 bits")
    add_uri(arguments, "--data", "prepared shards whose images compare int8 with float; default: noise", required=False)
    arguments.add_argument("--license", metavar="ID", help="license of the weights for the model card, such as mit")
    arguments.add_argument("--push", metavar="OWNER/NAME", help="upload to the Hub; a new repository is private")
    args = arguments.parse_args(argv)
    for option, form in ONLY.items():
        if getattr(args, option) and args.to != form:
            raise UserError(f"--{option}", f"--to {args.to}", f"--to {form}", f"leave out --{option}")
    if args.data and not args.int8:
        raise UserError("--data", "no --int8", "--int8 with --data", "leave out --data, or add --int8")

    from soda_dist.export.exporter import export

    return export(
        args.run,
        args.to,
        args.out,
        step=args.step,
        int8=args.int8,
        data_uri=args.data,
        license_id=args.license,
        push_to=args.push,
        say=say,
    )
