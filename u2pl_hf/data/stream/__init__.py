"""What training sees: order, augmentation, batches and pools."""
