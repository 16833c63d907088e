"""What an architecture costs on a device: traced, measured, kept in a table, predicted.

trace.py        a forward pass finds every distinct candidate and its inputs;
                examples.py: example inputs in words, and as tensors alone
fingerprint.py  what makes two candidates the same: description.py (with
                objects.py and sources.py) in words
count.py        multiply-adds, parameters, peak activation memory
runtimes/       what runs a module or an exported file: one small interface
networks.py     loaded networks of ONNX Runtime and LiteRT, for the runtimes and the kits
host.py         the processor, its other load, pinning
rounds.py       shuffled rounds over loaded networks, medians, a canary
timing.py       rounds over sessions of a runtime, to measurements
plan.py         which candidates and whole networks a table needs
measure.py      the table of a supernet
whole_networks.py  networks' latencies now
table.py        the lookup table and its file; table_entries.py: what it has a line of
constant.py     networks that a Zero makes constant, which are not measured
costs.py        table and trace to the costs of every candidate
limiting.py     a user's limits in the units of these costs
fit.py          from sums of blocks to whole networks
validate.py     how well the costs predict networks that were not fitted
space_table.py  a space's table as a whole, measured and validated
shared_tables.py  a folder of tables of several devices
precisions.py   one network in several precisions; sustained.py: for minutes without a pause
energy.py       millijoules an inference, where there is a meter
kit.py          measuring on a machine that is not this one; kit_main.py runs there,
                kit_results.py reads what comes back
published_table.py  latency tables that others published
"""
