"""ProxylessNAS from top to bottom in one script: read it beside the paper (arXiv 1812.00332).

    python examples/minimal_search.py     # a few seconds on one core

The script searches a small network for scikit-learn's digits (1,797 grey images of 8x8 pixels)
within a limit of multiply-adds (MACs), and compares it with random networks of the same cost.
What the library adds to this: latency measured on a device, resuming, many processes, export.
"""

from functools import partial
from itertools import islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.core.gates import Path
from proxylessnas.core.gradients import binary_gates, draw_pair, eq4
from proxylessnas.core.objective import Constraint
from proxylessnas.core.supernet import MixedOp, Residual, Supernet, Zero, softmax
from proxylessnas.core.tensors import collect_tensors
from proxylessnas.selection.propose import sample_within
from proxylessnas.training.freezing import frozen

WARMUP, STEPS = 150, 300  # steps; the paper takes 40 and 120 epochs of ImageNet
WIDTH, BATCH, RIVALS = 8, 64, 5

torch.set_num_threads(1)  # tensors this small are slower on many threads
torch.manual_seed(0)
random = torch.Generator().manual_seed(0)

# --- Data. The architecture learns from images that the weights never see (section 3.2.1):
# otherwise the search would prefer whatever memorises the training set best.
pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, torch.tensor(digits)
shuffled = torch.randperm(len(images), generator=random).split([800, 400, 597])
train, valid, test = [(images[part], labels[part]) for part in shuffled]


def batch(part, generator):
    picked = torch.randint(len(part[0]), (BATCH,), generator=generator)
    return part[0][picked], part[1][picked]


# --- The supernet (section 3.1): six searched positions of four candidates hold 4^6 = 4,096
# networks. Zero beside a shortcut means no layer: depth is searched together with the kernels.
def conv(kernel, channels=WIDTH):
    weights = nn.Conv2d(channels, WIDTH, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(weights, nn.BatchNorm2d(WIDTH), nn.ReLU())


def block():
    return Residual(MixedOp({"conv1": conv(1), "conv3": conv(3), "conv5": conv(5), "zero": Zero()}))


def make_supernet():
    at_8x8, at_4x4 = [block() for _ in range(3)], [block() for _ in range(3)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)]
    return Supernet(nn.Sequential(conv(1, 1), *at_8x8, nn.AvgPool2d(2), *at_4x4, *head))


supernet = make_supernet()
model, alpha, mask = supernet.model, supernet.alpha, supernet.mask  # α: [positions, candidates]

# --- Costs: F(o) of every candidate (section 3.3.1), here the MACs of its kernels. Measured
# milliseconds would stand in the same matrix; the loop below does not know the difference.
macs = torch.tensor(
    [
        [n * sum(p.numel() for p in c.parameters() if p.dim() == 4) for c in m.candidates.values()]
        for n, (m,) in zip([64] * 3 + [16] * 3, supernet.positions, strict=True)  # n pixels each
    ]
)
limit = 0.1 * float(macs.amax(1).sum())  # a tenth of the largest network
costs = Costs.one("macs", macs, limit=limit)

# --- The search (section 3.2).
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=4e-5)
weight_optimizer = sgd(model.parameters())
decay = torch.optim.lr_scheduler.CosineAnnealingLR(weight_optimizer, WARMUP + STEPS)
# β1 = 0: Adam's momentum would move candidates that a step did not sample. The rate lets α travel
# about 10 in the whole search; much slower, and the most probable candidate is decided by noise.
alpha_optimizer = torch.optim.Adam([alpha], lr=10 / STEPS, betas=(0.0, 0.999))
# The paper adds λ·E[latency] to the loss, with λ chosen by hand. Here λ rises while the most
# probable network breaks the limit and falls while there is room (dual ascent, as in LightNAS).
constraint = Constraint([limit], rate=20 / STEPS)
tensors = collect_tensors(supernet)

for step in range(WARMUP + STEPS):
    # Weight step: binary gates (eq. 2) let one candidate of each mixed operation run, so memory
    # and time are those of one network, however many candidates there are. In the warm-up the
    # gates are uniform: α cannot judge candidates whose weights have not learned anything yet.
    p = mask / mask.sum(1, keepdim=True) if step < WARMUP else supernet.probabilities()
    path = torch.multinomial(p, 1, generator=random)[:, 0].tolist()
    x, y = batch(train, random)
    with supernet.gated([Path(j) for j in path]):
        cross_entropy(model(x), y).backward()
    weight_optimizer.step()  # weights of other paths have no gradient, and are passed over
    weight_optimizer.zero_grad(set_to_none=True)
    decay.step()
    if step < WARMUP:
        continue

    # Architecture step: of each mixed operation two candidates are sampled from p, all others are
    # masked (section 3.2.1). One of the two runs, the other is tried in the backward pass.
    pair, active = draw_pair(alpha.detach(), mask, random)
    gates = torch.zeros_like(alpha, requires_grad=True)  # holds ∂L/∂g after the backward pass
    sampled = [[j for j, inside in enumerate(row) if inside] for row in pair.tolist()]
    p = supernet.probabilities().requires_grad_()
    x, y = batch(valid, random)
    # `frozen`: weights get no gradient and BN statistics stay. This step changes α alone.
    with frozen(tensors.of(sampled)), supernet.gated(binary_gates(pair, active, gates)):
        # E[cost] = Σ p·F(o) counts every candidate, not only the two that were sampled.
        objective = constraint(cross_entropy(model(x), y), costs.expected(p))
        grad_gates, grad_p = torch.autograd.grad(objective, [gates, p], materialize_grads=True)
    # Equation 4 turns gradients of gates into gradients of α; the cost's enter the same way.
    before = alpha.detach().clone()
    alpha.grad = eq4(softmax(before, pair), grad_gates + grad_p)
    alpha_optimizer.step()
    with torch.no_grad():
        # Shift the pair so that candidates outside of it keep their probabilities.
        weight = [a.masked_fill(~pair, -torch.inf).logsumexp(1, True) for a in (alpha, before)]
        alpha -= (weight[0] - weight[1]) * pair
    constraint.observe(costs.of(supernet.probabilities().argmax(1).tolist()))

for name, row in zip(supernet.names, supernet.probabilities().tolist(), strict=True):
    print(f"p of {name}:", "  ".join(f"{value:.2f}" for value in row))


# --- Deriving. The most probable candidate everywhere may break the limit, so the limit enters
# the choice: `decode` lists the networks that keep it, by Σ log p, each an exact optimum. We take
# the first that uses nine tenths of what it may cost, and random rivals by the same rule.
def uses_the_limit(network):
    return costs.of(network)[0] >= 0.9 * limit


searched = next(filter(uses_the_limit, decode(supernet.log_probabilities(), mask, costs)))
rivals = list(islice(filter(uses_the_limit, sample_within(mask, costs, random)), RIVALS))


# --- Was the search worth it? Every network is trained alone from the same beginning, as in the
# paper: inherited weights would favour the searched network, whose paths were trained the most.
def accuracy_from_scratch(network):
    torch.manual_seed(1)
    network = make_supernet().derive(network)  # plain PyTorch; no mixed operation is left
    generator = torch.Generator().manual_seed(1)
    optimizer = sgd(network.parameters())
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x, y = batch(train, generator)
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return (network.eval()(test[0]).argmax(1) == test[1]).double().mean().item()


print(f"limit {limit:,.0f} MACs")
accuracies = []
for title, network in [("searched", searched), *[("random", rival) for rival in rivals]]:
    kinds = " ".join(c[j] for c, j in zip(supernet.candidates, network, strict=True))
    accuracies.append(accuracy_from_scratch(network))
    print(f"{title:9}{accuracies[-1]:6.1%}{costs.of(network)[0]:9,.0f} MACs   {kinds}")
# One seed of a small problem: the script shows how the method works, and proves nothing about it.
mean = sum(accuracies[1:]) / RIVALS
print(f"test accuracy: searched {accuracies[0]:.1%}, random networks {mean:.1%} on average")
