"""The run directory, and the jobs of the command line.

directory.py    files on a disk, held by one process
opening.py      a run begun or gone on with, for both doors; changes.py: whether its data changed
configured.py   the problem that a configuration names: images and a space
specialised.py  the problem of --pretrained; teaching.py its stages, by_hand.py its baselines
any_model.py    the problem of --model; narrowing.py its stages
defaults.py     what both take where it is not given; within_budget.py: fitted to a budget
reach.py        limits that nothing keeps; sizes.py: several image sizes, by trials.py
begin.py        a run opened: its problem and its session; refusals.py: what is refused at once
job.py          the command line's stages in order
python_call.py  the same from Python
summary.py      all figures; summary_shown.py: on the terminal; reporting.py: as a report
elsewhere.py    its network on other images
"""
