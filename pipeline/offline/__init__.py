"""The offline stage: from a source to shards, manifests and statistics."""
