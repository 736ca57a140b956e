"""Numbers and token strings that every part of the library and every checkpoint agree on. Imports nothing."""

# Serving: seconds without a heartbeat after which a worker counts as dead, and seconds between heartbeats.
CONTROLLER_HEART_BEAT_EXPIRATION = 30
WORKER_HEART_BEAT_INTERVAL = 15

# Folder of the log files written by the serving programs.
LOGDIR = "."

# Label of a position that has no loss (torch.nn.CrossEntropyLoss skips it).
IGNORE_INDEX = -100
# Token id that stands for one image in a prompt; no vocabulary contains it.
IMAGE_TOKEN_INDEX = -200

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
# What stands for the video of a training record, as DEFAULT_IMAGE_TOKEN also may.
DEFAULT_VIDEO_TOKEN = "<video>"
# What a user may write in a query for "the image goes here".
IMAGE_PLACEHOLDER = "<image-placeholder>"
