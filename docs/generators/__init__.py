"""Generators of documentation pages: one module per page or group of pages.

A generator is a module here with a function ``pages()`` that returns the text of each of its pages by its path inside
``docs/``. If it also draws pictures, it has a function ``draw()``. ``docs/make.py`` finds all of them by looking into
this folder.
"""
