"""The online stage: order, reading, augmentation, the DALI graph and the thread that runs it."""
