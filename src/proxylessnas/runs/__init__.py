"""The run directory, and the jobs of the command line.

directory.py    files on a disk, held by one process
opening.py      a run begun or gone on with, for both doors; changes.py: whether its data changed
configured.py   the problem that a configuration names: images and a space
specialised.py  the problem of --pretrained; teaching.py its stages, by_hand.py its baselines
begin.py        a run opened: its problem and its session; refusals.py: what is refused at once
job.py          the command line's stages in order
summary.py      all figures; elsewhere.py: its network on other images
"""
