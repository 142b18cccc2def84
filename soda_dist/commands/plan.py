"""Print length in epochs, parameter counts, GFLOPs per forward pass and modulated layers of a configuration.

python jobs/plan.py --preset imagenet [--json] [a.b=value ...]
"""

import json

from soda_dist.cli import add_config, config_of, parse, parser, say


def main(argv: list[str]) -> str:
    arguments = parser(__doc__)
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_config(arguments, None)
    args = parse(arguments, argv)
    config = config_of(args)

    from soda_dist.config.lengths import epochs
    from soda_dist.training.plan import plan

    train = config.train
    length = {"steps": train.steps, "pairs": train.steps * train.global_batch, "epochs": epochs(args.preset, config)}
    facts = {"length": length, **plan(config)}
    if args.json:
        return json.dumps(facts)
    of_paper = "" if length["epochs"] is None else f", {length['epochs']:,.1f} epochs of the paper's training images"
    say(f"{train.steps:,} steps of {train.global_batch:,} pairs{of_paper}")
    for name, count in facts["parameters"].items():
        say(f"{name:18} {count / 1e6:10.2f} M parameters")
    for name, count in facts["flops_per_pair"].items():
        say(f"{name:18} {count / 1e9:10.2f} GFLOP per forward pass")
    say(f"{'modulated layer':40} resolution  section of z")
    for layer in facts["modulated_layers"]:
        say(f"{layer['name']:40} {layer['resolution']:10}  {layer['section']}")
    return ""
