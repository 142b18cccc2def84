"""Write a checkpoint for timm, for ONNX runtimes or for the Hugging Face Hub."""

from soda_dist.cli import run
from soda_dist.commands.export import main

if __name__ == "__main__":
    run(main)
