"""Pretrain the paper's ImageNet model: `pretrain.py` with the preset `imagenet`.

python jobs/pretrain_imagenet.py --data s3://BUCKET/imagenet --run s3://BUCKET/runs/imagenet [a.b=value ...]
"""

from pretrain import main  # jobs/pretrain.py

from soda_dist.cli import run

if __name__ == "__main__":
    run(lambda argv: main(argv, preset="imagenet", description=__doc__))
