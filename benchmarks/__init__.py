"""One script a question; each writes `results/<name>.json` and prints what it found."""
