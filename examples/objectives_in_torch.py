"""The same equations in PyTorch: autograd through PPO's clipped objective and DPO's loss.

Try: python examples/objectives_in_torch.py
"""

import torch

from tether.objectives import clip_active, clipped_surrogate, dpo

# Six ratios, one for each row of the lecture's table of the clipped objective.
ratio = torch.tensor([1.1, 0.9, 0.5, 0.5, 1.5, 1.5])
advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])
log_ratio = ratio.log().requires_grad_()
terms = clipped_surrogate(log_ratio, advantage, epsilon=0.2, reduction="none")
(slope,) = torch.autograd.grad(terms.sum(), log_ratio)
for row in zip(ratio, advantage, terms, slope, clip_active(log_ratio, advantage, 0.2), strict=True):
    r, a, term, gradient, clipped = (value.item() for value in row)
    print(f"r={r:.1f} A={a:+.0f}  min={term:+.2f}  gradient={gradient:+.2f}  clipped={clipped}")

# A policy over four answers learns from one comparison: answer 2 is better than answer 0.
logits, reference = torch.zeros(4, requires_grad=True), torch.full((4,), 0.25).log()
optimizer = torch.optim.Adam([logits], lr=0.1)
for step in range(41):
    gap = torch.log_softmax(logits, 0) - reference  # log pi(y|x) - log ref(y|x)
    loss = dpo(gap[2], gap[0], beta=0.5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step:2d}  loss {loss.item():.3f}  pi {logits.softmax(0).tolist()}")
