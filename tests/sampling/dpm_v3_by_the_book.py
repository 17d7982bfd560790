"""DPM-Solver-v3 as its formulas say, one by one: global integrals, absolute exponents, a cache that the corrector
rewrites. Slow and plain; the solver is compared with it."""

import math

import torch


def trapezoid(values, h):
    return torch.cat([torch.zeros_like(values[:1]), (0.5 * h * (values[1:] + values[:-1])).cumsum(0)])


class Book:
    def __init__(self, tables, process):
        self.l, self.lam, self.times, self.process = tables.l, tables.nodes, tables.times, process
        self.h = float(self.lam[1] - self.lam[0])
        self.L, self.S = trapezoid(tables.l, self.h), trapezoid(tables.s, self.h)
        self.I = trapezoid(torch.exp(self.L + self.S), self.h)
        self.B = trapezoid(torch.exp(-self.S) * tables.b, self.h)
        self.C = trapezoid(torch.exp(self.L + self.S) * self.B, self.h)
        self.levels = process.levels(self.times)

    def moment(self, i, j, n):
        way = (self.lam[i : j + 1] - self.lam[i]) ** n / math.factorial(n)
        weight = torch.exp(self.L[i : j + 1] + self.S[i : j + 1] - self.L[i] - self.S[i])
        return trapezoid(weight * way.reshape(-1, *(1,) * (self.L.ndim - 1)), self.h)[-1]

    def derivatives(self, nodes, g, pseudo):
        way = [float(self.lam[n] - self.lam[nodes[0]]) for n in nodes]
        count = len(nodes)
        if count == 1:
            return []
        if pseudo:
            table = [list(g)]
            for k in range(1, count):
                last = table[-1]
                table.append([(last[i + 1] - last[i]) / (way[i + k] - way[i]) for i in range(count - k)])
            return [math.factorial(n) * table[n][0] for n in range(1, count)]
        left = torch.tensor([[way[m] ** n for n in range(1, count)] for m in range(1, count)], dtype=torch.float64)
        right = torch.stack([(g[m] - g[0]).flatten() for m in range(1, count)])
        a = torch.linalg.solve(left, right)
        return [math.factorial(n) * a[n - 1].reshape(g[0].shape) for n in range(1, count)]

    def update(self, cache, nodes, j, pseudo):
        """From nodes[0] to j, g through the nodes; cache: node -> (x, eps)."""
        i = nodes[0]
        g = []
        for m in nodes:
            x, eps = cache[m]
            level = self.levels[m]
            f = (level.noise * eps - self.l[m] * x) / level.data
            g.append(torch.exp(self.S[i] - self.S[m]) * f - torch.exp(self.S[i]) * (self.B[m] - self.B[i]))
        x, alpha_s, alpha_t = cache[i][0], self.levels[i].data, self.levels[j].data
        L, J, B, C = self.L, self.I, self.B, self.C
        out = alpha_t / alpha_s * torch.exp(L[i] - L[j]) * x
        out = out - alpha_t * torch.exp(-L[j] - self.S[i]) * (J[j] - J[i]) * g[0]
        out = out - alpha_t * torch.exp(-L[j]) * (C[j] - C[i] - B[i] * (J[j] - J[i]))
        for n, d in enumerate(self.derivatives(nodes, g, pseudo), start=1):
            out = out - alpha_t * torch.exp(L[i] - L[j]) * self.moment(i, j, n) * d
        return out

    def sample(self, denoiser, x, index, order, corrector, until, pseudo, pseudo_corrector, lower_order_final):
        steps, cache, last = len(index) - 1, {}, 0
        for n in range(1, steps + 1):
            now = index[n - 1]
            level = self.levels[now]
            eps = denoiser(x, level).noise
            cache[now] = (x, eps)
            past = [index[k] for k in range(n - 2, -1, -1)]
            q = last + (1 if pseudo_corrector else 0)
            if corrector and n > 1 and q > 1 and level.t <= until:
                new = self.update(cache, [past[0], now, *past[1:]][:q], now, pseudo_corrector)
                eps = (level.noise * eps - self.l[now] * x + self.l[now] * new) / level.noise
                x = new
                cache[now] = (x, eps)
            last = min(n, order)
            if lower_order_final:
                last = min(last, steps + 1 - n)
            x = self.update(cache, [now, *past][:last], index[n], pseudo)
        return x
