"""Room of the Triton kernels (imports as onepass.kernels). Nothing here imports the rest of onepass.

rules.py is arithmetic, multi_tensor.py the one driver, table.py and transfer.py what it is given; optim.py
has the ops that the `triton` column of onepass/ops.py names.
"""
