"""Room of the plain-PyTorch reference: every op once more, in the fewest lines that say what it means.

The arithmetic is float64 throughout and rounded once, when a result is stored: the tests' truth, and what
serves where nothing else does. Nothing here imports the rest of onepass.
"""
