#!/bin/sh
# Six tasks of handwritten digits, each learned by a process of its own; then predicted without a task id,
# inspected and pruned. Usage: demo.sh FOLDER
set -eu
out=${1:-demo-out}
rm -rf "$out"
mkdir -p "$out"
export CLMOE_STORE="$out/store"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*" | if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then cat; else sed 's/\x1b\[[01]*m//g'; fi; }
run() { say "$@"; "$@"; }

run clmoe tasks mnist5k "$out/tasks" \
    --classes 1,5 --classes 2,6 --classes 3,7 --classes 4,8 --classes 5,9 --classes 0,2
for i in 1 2 3 4 5 6; do
    run clmoe learn --quiet --data "$out/tasks/task$i.npz"
done

printf '\nTask 2 again, with images never seen: is it noticed?\n'
run clmoe detect --data "$out/tasks/task2.test.npz"
run clmoe predict --quiet --batch "$out/tasks/task4.test.npz" --route batch --output "$out/task4.csv"
printf "\nImages of all tasks, each by itself, with no task id; 5 %% of known ones may be called unknown:\n"
run clmoe predict --batch "$out/tasks/mixed.test.npz" --reject 0.05
run clmoe inspect
run clmoe inspect --verify --plot "$out/store.png" --report "$out/store.html" --format md
run clmoe prune --task task3 --yes
run clmoe inspect
