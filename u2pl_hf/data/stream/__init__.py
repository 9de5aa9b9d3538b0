"""What training sees: order, batches and pools of images that `data.transforms` augments.

Used from outside: `streams.SampleStream` and `endless_loader`, `pools.RowPool` and `Reservoir`.
"""
