"""Room of the Triton kernels (imports as onepass.kernels). Nothing here imports the rest of onepass.

No op has one yet: a kernel is a module here, named in the `triton` column of onepass/ops.py.
"""
