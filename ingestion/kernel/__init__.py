"""The one kernel: decode, book, windows, featurizer and label arithmetic, pure and without I/O."""
