"""Runs in a peer's environment: its script's ``learn`` and ``predict`` with each of some settings.

    python choose.py SCRIPT SETTINGS FOLDER FILE ...

FOLDER has ``task1.npz``, … to learn; FILEs are asked: held-out training inputs. Prints the settings' mean
share of right answers over the files to ask, and seconds of processor time, as JSON.
"""

import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np


def main() -> None:
    script, settings, folder = import_module(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]).resolve()
    said, rows = sys.stdout, []
    sys.stdout = sys.stderr
    for setting in settings:
        started, right = time.process_time(), []
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            for number in range(1, setting["tasks"] + 1):
                script.learn("state", str(folder / f"task{number}.npz"), json.dumps(setting))
            for path in [folder / name for name in sys.argv[4:]]:
                script.predict("state", str(path), "answers.npy", json.dumps(setting))
                right.append(float(np.mean(np.load("answers.npy") == np.load(path)["y"])))
            os.chdir(folder)
        rows.append({"held_out": float(np.mean(right)), "seconds": time.process_time() - started})
    print(json.dumps(rows), file=said)


if __name__ == "__main__":
    main()
