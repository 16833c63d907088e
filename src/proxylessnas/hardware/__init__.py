"""What an architecture costs on a device: traced, measured, kept in a table, predicted.

trace.py      a forward pass finds every distinct candidate and its inputs
count.py      multiply-adds, parameters, peak activation memory
runtimes/     what runs a module or an exported file: one small interface
machine.py    the processor, its other load, pinning
measure.py    the protocol: shuffled rounds over open sessions, medians, a canary
table.py      the lookup table and its file
cost.py       table + trace to one cost per candidate
validate.py   how well the costs predict networks that were not fitted
kit.py        measuring on a machine that is not this one
"""
