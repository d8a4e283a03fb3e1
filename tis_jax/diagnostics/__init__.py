"""Pictures of the gap, of the weights and of a run."""
