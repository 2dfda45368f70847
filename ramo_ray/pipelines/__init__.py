"""Ray Data pipelines, Dataset to Dataset. Their actors own the tokenizers and hand token ids to an engine."""
