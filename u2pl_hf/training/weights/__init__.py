"""Where a model starts: fresh, from a backbone's weights, from a checkpoint of others.

From outside: `backbones.backbone_config`, `backbone_normalisation`; `initialize.find_starting_point`;
`published_checkpoints.convert_checkpoint`.
"""
