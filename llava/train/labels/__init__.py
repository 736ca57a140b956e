"""From a dialog to token ids and labels: which parts of a prompt are answers, and where they lie."""

LABEL_MASKS = ("reference", "spans")  # what --label_masks takes
