"""Training: arguments, data, masks, sampling, the trainer and the programs that start it."""

import logging

# peft imports bitsandbytes wherever it is installed, and that warns of a CPU kernel which no current version has
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
