"""Where checkpoints, minimal pairs and text come from: folders, the hub, published sets."""
