"""Sources of pictures: one module per layout, one protocol (`base.Source`)."""
