"""Trains with flash attention where it works: python llava/train/train_mem.py --model_name_or_path ..."""

import sys

from llava.train.help import show_help

if __name__ == "__main__":
    show_help(sys.argv)  # before what follows, which takes ten seconds

from llava.train.train import train
from llava.utils import run_program

if __name__ == "__main__":
    run_program(lambda: train(attn_implementation="flash_attention_2"))
