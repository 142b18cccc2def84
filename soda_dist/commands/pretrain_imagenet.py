"""Pretrain the paper's ImageNet model: `pretrain` with the preset `imagenet`.

python jobs/pretrain_imagenet.py --data s3://BUCKET/imagenet --run s3://BUCKET/runs/imagenet [a.b=value ...]
"""

from soda_dist.commands import pretrain


def main(argv: list[str]) -> str:
    return pretrain.main(argv, preset="imagenet", description=__doc__)
