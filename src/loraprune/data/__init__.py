"""What a model is tuned on: data read from files or the hub, as token ids with labels that mark the answers."""
