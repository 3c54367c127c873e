"""Muon for the matrices of the layers, Adam for the rest.

Muon: the momentum of a matrix's gradient, replaced by the nearest orthogonal matrix (Keller Jordan,
https://kellerjordan.github.io/posts/muon/). Gate and up of an expert, fused in one tensor, are two
matrices to it, and equal shapes are orthogonalised in one batch.
"""
import torch

MUON_RATE = 0.02
MUON_MOMENTUM = 0.95
MUON_DECAY = 0.05
ADAM_RATE = 0.003
ADAM_BETAS = (0.9, 0.98)


def orthogonalised(g):
    """The orthogonal factor of each matrix of g [batch, rows, cols], rows <= cols, by five
    Newton-Schulz steps: singular values end between about 0.7 and 1.2."""
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    def __init__(self, parts):
        """parts: (parameter, how many matrices each of its last two dimensions holds)."""
        self.parts = parts
        self.momentum = [torch.zeros_like(p) for p, _ in parts]

    @torch.no_grad()
    def step(self, rate):
        by_shape = {}
        for (p, pieces), momentum in zip(self.parts, self.momentum):
            momentum.lerp_(p.grad, 1 - MUON_MOMENTUM)
            update = p.grad.lerp(momentum, MUON_MOMENTUM)
            rows, cols = p.shape[-2] // pieces, p.shape[-1]
            update = update.reshape(-1, rows, cols)
            tall = rows > cols
            if tall:
                update = update.transpose(1, 2)
            by_shape.setdefault(tuple(update.shape[1:]), []).append((p, update, tall))
        for items in by_shape.values():
            updates = orthogonalised(torch.cat([update for _, update, _ in items]))
            for (p, _, tall), update in zip(items, updates.split([len(u) for _, u, _ in items])):
                if tall:
                    update = update.transpose(1, 2)
                p.mul_(1 - rate * MUON_DECAY)
                scale = max(1, update.shape[1] / update.shape[2]) ** 0.5
                p.add_(update.reshape(p.shape), alpha=-rate * scale)


class Optimizer:
    def __init__(self, model):
        matrices, others = [], []
        for name, p in model.named_parameters():
            if name.startswith("layers.") and p.dim() >= 2 and not name.endswith("router"):
                matrices.append((p, 2 if name.endswith("gate_up") else 1))
            else:
                others.append(p)
        self.muon = Muon(matrices)
        self.adam = torch.optim.Adam(others, lr=ADAM_RATE, betas=ADAM_BETAS)

    def step(self, share):
        """share: of the full learning rate."""
        self.muon.step(MUON_RATE * share)
        self.adam.param_groups[0]["lr"] = ADAM_RATE * share
        self.adam.step()

    def state(self):
        return {"muon": self.muon.momentum, "adam": self.adam.state_dict()}

    def load(self, state):
        self.muon.momentum = state["muon"]
        self.adam.load_state_dict(state["adam"])
