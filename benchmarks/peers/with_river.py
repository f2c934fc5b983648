"""river: naive Bayes or a logistic regression for each class, in batches of 128, one task a process, kept by pickle."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from river import linear_model, multiclass, naive_bayes, optim, preprocessing


def opened(state, setting):
    if Path(state).exists():
        return pickle.loads(Path(state).read_bytes())  # noqa: S301
    if setting["model"] != "logistic":
        return getattr(naive_bayes, setting["model"])(**setting.get("arguments", {}))
    one = linear_model.LogisticRegression(optim.SGD(setting["lr"]))
    return preprocessing.StandardScaler() | multiclass.OneVsRestClassifier(one)


def learn(state, data, setting):
    model, data = opened(state, json.loads(setting)), np.load(data)
    x, y = pd.DataFrame(data["x"]).rename(columns=str), pd.Series(data["y"])
    for start in range(0, len(y), 128):
        model.learn_many(x.iloc[start : start + 128], y.iloc[start : start + 128])
    with Path(state).open("wb") as file:
        pickle.dump(model, file)


def predict(state, data, answers, setting):
    x = pd.DataFrame(np.load(data)["x"]).rename(columns=str)
    np.save(answers, opened(state, json.loads(setting)).predict_many(x).to_numpy(np.int64))


if __name__ == "__main__":
    {"learn": learn, "predict": predict}[sys.argv[1]](*sys.argv[2:])
