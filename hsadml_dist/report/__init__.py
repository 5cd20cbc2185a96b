"""One self-contained page per verdict: figures, the numbers under each, and what they do not say."""
