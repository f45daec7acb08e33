"""What is loaded by name or from a folder, which may be somebody else's: language models, datasets, saved SAEs."""
