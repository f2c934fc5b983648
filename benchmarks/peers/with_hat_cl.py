"""hat-cl: two ``HATLinear`` and a head a task, one task a process, kept as a state dict. The task is given."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from hat import HATConfig, HATPayload
from hat.modules import HATLinear
from hat.utils import get_hat_mask_scale, get_hat_reg_term
from torch import nn


class Net(nn.Module):
    def __init__(self, setting):
        super().__init__()
        config = HATConfig(num_tasks=setting["tasks"])
        self.body = nn.ModuleList([HATLinear(setting["columns"], 500, config), HATLinear(500, 500, config)])
        self.heads = nn.ModuleList([nn.Linear(500, setting["classes"]) for _ in range(setting["tasks"])])

    def forward(self, x, task, scale=None):
        found = HATPayload(x, task_id=task, mask_scale=scale)
        for layer in self.body:
            found = layer(found).forward_by(nn.ReLU())
        return self.heads[task](found.data)


def opened(state, setting):
    torch.manual_seed(setting["seed"])
    net = Net(setting)
    if Path(state).exists():
        net.load_state_dict(torch.load(state))
    return net


def learn(state, data, setting):
    setting, data = json.loads(setting), np.load(data)
    x, y, task = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]), int(data["task"])
    net = opened(state, setting).train()
    parameters = [*net.body.parameters(), *net.heads[task].parameters()]
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=setting["lr"])
    for _ in range(setting["epochs"]):
        batches = torch.randperm(len(y)).split(128)
        for step, index in enumerate(batches):
            scale = get_hat_mask_scale("linear", progress=step / max(1, len(batches) - 1))
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(net(x[index], task, scale), y[index])
            used = get_hat_reg_term(net.body, "uniform", task_id=task, mask_scale=scale)
            (loss + setting["penalty"] * used).backward()
            optimizer.step()
    torch.save(net.state_dict(), state)


def predict(state, data, answers, setting):
    net, data = opened(state, json.loads(setting)).eval(), np.load(data)
    with torch.no_grad():
        np.save(answers, net(torch.from_numpy(data["x"]), int(data["task"])).argmax(1).numpy())


if __name__ == "__main__":
    {"learn": learn, "predict": predict}[sys.argv[1]](*sys.argv[2:])
