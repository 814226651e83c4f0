"""Shared arithmetic of methods: density peaks, grids, groups and parts of tokens.  No rule in here."""
