"""One file per method; each is found through the `_target_` of its configs/method/<name>.yaml."""
