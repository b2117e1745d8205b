"""Harm: answers that people have scored, prompts that ask for it, and a scorer learned from both.

Texts of this package's data are harmful. Nothing here prints or writes them.
"""
