#!/bin/sh
# Two tasks of photographs, seen through a frozen network (lite0) that comes with a package: learned, predicted without
# a task id, and shown on a page with small pictures. Nothing is downloaded. The photographs are crops of three that
# packages carry, so this is a demonstration and no benchmark. Usage: demo-photos.sh FOLDER
set -eu
out=${1:-demo-out/photos}
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$out"
mkdir -p "$out"
cd "$out"
export CLMOE_STORE=store

say() { printf '\n\033[1m$ %s\033[0m\n' "$*" | if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then cat; else sed 's/\x1b\[[01]*m//g'; fi; }
run() { say "$@"; "$@"; }

cat <<'END'
Each class is crops of one region of a photograph; those to learn from and those to ask about come from disjoint parts.
This is a demonstration and no benchmark: crops of one photograph are far more alike than photographs of one class are.
END
run python "$here/crop_photos.py" photos
run clmoe learn --quiet --data photos/garden --name garden --features lite0
run clmoe learn --quiet --data photos/flower --name flower

printf '\nTwo pictures and a folder, never seen, with no task id:\n'
run clmoe predict --quiet photos/garden.test/pagoda/00.jpg photos/flower.test/dahlia/00.jpg photos/flower.test/leaves
printf '\nFolders of both tasks at once; their class folders say what is right:\n'
run clmoe predict photos/garden.test photos/flower.test --output answers.csv
cat <<'END'

A portrait is of no class: --reject .05 should call it unknown. Of pictures like those learned it calls 5 % unknown. Here
it is more of them, since the parts to ask about differ from the parts that were learned.
END
run clmoe predict --quiet photos/unknown/00.jpg photos/garden.test/pagoda/01.jpg photos/flower.test/dahlia/01.jpg --reject .05
run clmoe inspect
run clmoe inspect --quiet --format md --report store.html --with-pictures photos
printf '\nA page with small pictures of each class: %s\n' "$out/store.html"
