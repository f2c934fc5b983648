"""Avalanche: ``Naive``, ``Replay`` or ``EWC`` over a perceptron, one task a process, kept by ``torch.save``.

Avalanche's own ``save_checkpoint`` fails on this (version 0.6.0, ContinualAI/avalanche issues 1549 and 1680). What is
saved leaves out the data of the task, of which the memory of ``Replay`` has views: else all inputs would be stored.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from avalanche import training
from avalanche.benchmarks.scenarios import benchmark_from_datasets
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin


def opened(state, setting):
    if Path(state).exists():
        return torch.load(state, weights_only=False)
    torch.manual_seed(setting["seed"])
    net = SimpleMLP(setting["classes"], setting["columns"], hidden_size=500, hidden_layers=2, drop_rate=0)
    return getattr(training, setting["strategy"])(
        model=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=setting["lr"]),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=128,
        train_epochs=setting["epochs"],
        evaluator=EvaluationPlugin(),
        **setting.get("arguments", {}),
    )


def dataset(x, y):
    attributes = [
        DataAttribute(y, "targets"),
        DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True),
    ]
    return AvalancheDataset([torch.utils.data.TensorDataset(x, torch.tensor(y))], data_attributes=attributes)


def learn(state, data, setting):
    strategy, data = opened(state, json.loads(setting)), np.load(data)
    own = dataset(torch.from_numpy(data["x"]), data["y"].tolist())
    strategy.train(benchmark_from_datasets(train=[own]).train_stream[0])
    strategy.experience = strategy.adapted_dataset = strategy.dataloader = strategy.mbatch = None
    for plugin in strategy.plugins:
        if isinstance(plugin, ReplayPlugin):
            for group in plugin.storage_policy.buffer_groups.values():
                x, y, _ = zip(*group.buffer, strict=True)
                group.buffer = dataset(torch.stack(x), [int(label) for label in y])
    torch.save(strategy, state)


def predict(state, data, answers, setting):
    net = opened(state, json.loads(setting)).model.eval()
    with torch.no_grad():
        np.save(answers, net(torch.from_numpy(np.load(data)["x"])).argmax(1).numpy())


if __name__ == "__main__":
    {"learn": learn, "predict": predict}[sys.argv[1]](*sys.argv[2:])
