"""What the embeddings are worth: neighbours, figures with intervals, controls, and the verdict on a run."""
