"""Files and pixels: sources to shards, manifest and statistics; order, augmentation, DALI graph, loader."""
