"""From a dialog to token ids and labels: which parts of a prompt are answers, and where they lie."""
