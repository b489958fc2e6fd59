"""Training: the curriculum, the loss, the trainer and its checkpoints."""
