"""What training sees: order, augmentation, batches and pools.

Used from outside: `streams.SampleStream` and `endless_loader`, `transforms.WeakAugmentation`, `pools.RowPool` and
`Reservoir`.
"""
