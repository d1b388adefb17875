"""The online stage: order, reading, augmentation, and the DALI graph with the thread that runs it."""
