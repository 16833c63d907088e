"""The paper, and nothing else, in the order in which to read it (arXiv 1812.00332).

mixed        mixed operations; a plain network derived from them           section 3.1
supernet     choices, α, and one path through the model                    section 3.1
gates        one candidate runs; every gate's gradient                     section 3.2
gradients    equation 4, the sampled pair, one architecture step           section 3.2.1
costs        E[cost] in closed form                                        section 3.3.1
objective    loss and expected costs to one scalar, a constraint           section 3.3.1
estimators   two-path, full-path, REINFORCE, and rivals                    sections 3.2.1, 3.3.2
schedule     which steps there are, and uniform gates
search       weight steps and architecture steps in turn                   section 3.2.1
             (its parts and its state: search_state; what learns: tensors)
decode       the most probable networks within limits, exactly
adapt        from one search to another limit

What is chosen of the most probable networks goes beyond the paper: `selection/`.

`examples/minimal_search.py` is all of it in one script.
"""
