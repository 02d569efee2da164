"""Speed, memory and arithmetic of models that take turns: models in, figures out."""
