"""Training: arguments, data, masks, sampling, the trainer and the programs that start it."""

import logging

# peft imports bitsandbytes where it is installed, and that warns of a CPU kernel which no version here has
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
