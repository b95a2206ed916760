"""Many calibrations: models, concepts, budgets and blocks, on the cores of one machine.

cells   what is asked for: one cell a calibration, from options or a TOML file
ledger  what became of each cell, kept in the sweep's directory
worker  a process that holds a model and works through its cells
pool    the workers, and which cell goes to which
run     the sweep, from cells to the report
report  what the calibrations say together
"""
