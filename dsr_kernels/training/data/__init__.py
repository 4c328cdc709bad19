"""Data sets: their files, the order of their images, augmentation and batches."""
