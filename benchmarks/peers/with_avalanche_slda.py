"""Avalanche's ``StreamingLDA`` on the inputs as they are, one task a process, kept by its ``save_model``."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from avalanche.benchmarks.scenarios import benchmark_from_datasets
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training import StreamingLDA
from avalanche.training.plugins import EvaluationPlugin


def opened(state, setting):
    strategy = StreamingLDA(
        slda_model=torch.nn.Identity(),
        criterion=torch.nn.CrossEntropyLoss(),
        input_size=setting["columns"],
        num_classes=setting["classes"],
        shrinkage_param=setting["shrinkage"],
        train_mb_size=4096,
        evaluator=EvaluationPlugin(),
    )
    if Path(f"{state}.pth").exists():
        strategy.load_model(".", state)
    return strategy


def learn(state, data, setting):
    data, labels = np.load(data), np.load(data)["y"].tolist()
    attributes = [
        DataAttribute(labels, "targets"),
        DataAttribute([0] * len(labels), "targets_task_labels", use_in_getitem=True),
    ]
    dataset = AvalancheDataset(
        [torch.utils.data.TensorDataset(torch.from_numpy(data["x"]), torch.tensor(labels))], data_attributes=attributes
    )
    strategy = opened(state, json.loads(setting))
    strategy.train(benchmark_from_datasets(train=[dataset]).train_stream[0])
    strategy.save_model(".", state)


def predict(state, data, answers, setting):
    scores = opened(state, json.loads(setting)).predict(torch.from_numpy(np.load(data)["x"]))
    np.save(answers, scores.argmax(1).numpy())


if __name__ == "__main__":
    {"learn": learn, "predict": predict}[sys.argv[1]](*sys.argv[2:])
