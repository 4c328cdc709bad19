"""Data sets: reading, order, augmentation and batches."""
