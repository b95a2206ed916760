"""Many calibrations: models, concepts, budgets and blocks, on this machine or a Ray cluster.

cells: what is asked for, one cell a calibration, from options or a TOML file. loading: how their
models are loaded. ledger: what became of each cell, kept in the sweep's directory. worker: a
process that holds a model and works through its cells. pool: the workers of this machine, and which
cell goes to which. on_ray: the same on a cluster. run: the sweep, from cells to the report. report:
what the calibrations say together.
"""
