"""Files and pixels: from sources to shards, manifest and statistics; order, augmentation, DALI graph, loader."""
