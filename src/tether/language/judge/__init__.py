"""Language models as judges: log-odds of one answer, or which of two is better.

A judge's verdict is read from the probabilities of its answer words, never parsed from prose. Open
one with :func:`tether.language.judge.opening.open_judge`.
"""
