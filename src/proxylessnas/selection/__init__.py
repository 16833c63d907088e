"""From α to one network, beyond the paper, which keeps the most probable candidate everywhere.

propose.py    the first networks: the most probable within the limits
choose.py     decode under the limits, score the best, measure the best of these, correct the costs
explore.py    from a few scored networks to better ones: predict, take the optimum, score it
predictor.py  what networks are worth, predicted from others of the same space
"""
