"""A network as a file for somewhere else, each compared with what eager computes."""
