"""scikit-learn: ``partial_fit`` of a linear model or of naive Bayes, one task a process, kept by joblib."""

import json
import sys
from pathlib import Path

import joblib
import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import GaussianNB


def opened(state, setting):
    if Path(state).exists():
        return joblib.load(state)
    if setting["model"] == "bayes":
        return GaussianNB(var_smoothing=setting["smoothing"])
    return SGDClassifier(alpha=setting["alpha"], average=setting["average"], random_state=setting["seed"])


def learn(state, data, setting):
    setting, data = json.loads(setting), np.load(data)
    model = opened(state, setting)
    for _ in range(setting.get("epochs", 1)):
        model.partial_fit(data["x"], data["y"], classes=np.arange(setting["classes"]))
    joblib.dump(model, state)


def predict(state, data, answers, setting):
    np.save(answers, opened(state, json.loads(setting)).predict(np.load(data)["x"]))


if __name__ == "__main__":
    {"learn": learn, "predict": predict}[sys.argv[1]](*sys.argv[2:])
