"""Shared arithmetic of methods: density peaks, grids, groups and parts of tokens.  It contains no method."""
