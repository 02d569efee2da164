"""What a run will take, from a model's shapes alone: memory, arithmetic, time. Every figure is an estimate."""
