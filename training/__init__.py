"""From rows to models: labels, splits, datasets, models, evaluation, registry and artefacts."""
