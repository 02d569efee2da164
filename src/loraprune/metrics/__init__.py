"""Pure measures of a model: perplexity, accuracy, completions, tasks."""
