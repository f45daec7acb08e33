"""What SAELens asks of an architecture: see README.md in this folder."""
