"""Find ranks that hang, die or fall behind."""
