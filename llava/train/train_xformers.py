"""Trains with the memory-efficient attention that the reference took from xformers, on torch's SDPA."""

import sys

from llava.train.help import show_help

if __name__ == "__main__":
    show_help(sys.argv)  # before what follows, which takes ten seconds

from llava.train.llama_xformers_attn_monkey_patch import replace_llama_attn_with_xformers_attn
from llava.train.train import train
from llava.utils import run_program

if __name__ == "__main__":
    run_program(lambda: train(attn_implementation=replace_llama_attn_with_xformers_attn()))
