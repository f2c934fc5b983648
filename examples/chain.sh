#!/bin/sh
# Learns files one after another, as they arrive, and keeps a report of what is frozen.
#
#     sh chain.sh STORE task1.npz task2.npz …
#
# Stopped or killed, the same line goes on where it was: what is learned is known, what was begun is finished.
set -eu
CLMOE_STORE=$1
export CLMOE_STORE
shift

for data in "$@"; do
    # 0: known, 10: new (pictures of another size and vectors are), 11: undecided, since too little was learned to tell;
    # labels decide then. 4: the store has no task yet, where the first learn was stopped; what else it may mean stops learn
    # as well. Anything else: an error, which clmoe has explained on stderr.
    verdict=10
    if [ -d "$CLMOE_STORE" ]; then
        verdict=0
        clmoe detect --data "$data" --exit-code --quiet > /dev/null || verdict=$?
    fi
    case $verdict in
    0) echo "$data: known, nothing to learn" ;;
    4 | 10 | 11)
        clmoe learn --data "$data" --quiet --json > learned.json
        python3 - <<'PYTHON'
import json

report = json.load(open("learned.json", encoding="utf-8"))
if report["status"] == "known":
    raise SystemExit(print(f"{report['task']}: known by its labels, nothing to learn"))
frozen = max(layer["frozen_percent"] for layer in report["layers"])
print(f"{report['task']} in {report['expert']}: {report['reason']}; at most {frozen:.2f} % of a layer frozen")
PYTHON
        ;;
    *) exit "$verdict" ;;
    esac
done

clmoe inspect --format csv > frozen.csv
echo "frozen.csv has the history"
