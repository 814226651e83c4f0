"""Runs lmms-eval with torchvision's operators declared; the arguments are lmms-eval's own."""

import sys

import operators  # noqa: F401

if __name__ == "__main__":
    from lmms_eval.__main__ import cli_evaluate

    sys.argv[0] = "lmms_eval"
    cli_evaluate()
