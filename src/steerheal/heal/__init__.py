"""From kept completions to weights: barrier, adapter, training, fold, export."""
