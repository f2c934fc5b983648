VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
MNIST ?= ../shared/mnist
PHOTOS ?= ../shared/photos
OUT ?= demo-out
OLD_PYTHON ?= python3.10

.PHONY: docs help install demo demo-photos test mutants test-faults lint check format clean bench-p6 bench-paper bench-curve bench-onset bench-brightness bench-transfer bench-segmentation \
	bench bench-card bench-hundred bench-ablation bench-gate bench-defaults bench-cnn bench-colour bench-resnet bench-memory bench-processes bench-answers bench-photos bench-unknown bench-pictures bench-peers

##@ Use

help:  ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install everything into it

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## learn six digit tasks one after another, predict, inspect, prune
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh $(OUT)

demo-photos: $(STAMP)  ## learn two tasks of photographs through lite0, offline (a minute; no benchmark)
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo-photos.sh $(OUT)/photos

clean:  ## remove what the targets made
	rm -rf demo-out bench-out build .pytest_cache .mypy_cache .ruff_cache

##@ Check

check: lint test  ## the gate: lint, format, types, import directions, tests with warnings as errors

test: $(STAMP)  ## run the tests, warnings as errors
	$(BIN)/python -m pytest tests -n 2 --dist worksteal

lint: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## docs/commands.md, from the commands themselves
	$(BIN)/python docs/generate.py

mutants: $(STAMP)  ## deliberate faults, one at a time: the tests must notice at least nine of ten
	$(BIN)/python tests/mutants.py

test-faults: $(STAMP)  ## the campaigns: crashes, power loss, damage, hostile files, benchmarks in small (three hours)
	$(BIN)/python -m pytest tests/faults --whole
	$(BIN)/python -m pytest tests -m "campaign or hypothesis" --ignore tests/faults --whole

##@ Measure

bench-p6: $(STAMP)  ## the paper's experiment on all of MNIST (MNIST=root of torchvision's data set)
	$(BIN)/python benchmarks/p6.py --root $(MNIST) --out bench-out

bench-paper: $(STAMP)  ## Figs. 2, 3a, 3b and Table 1 of the paper with five seeds, beside separate dense networks
	$(BIN)/python benchmarks/paper.py --root $(MNIST) --out bench-out/paper

bench-curve: $(STAMP)  ## accuracy against frozen share, and without reading earlier tasks
	$(BIN)/python benchmarks/curve.py --root $(MNIST) --out bench-out/curve

bench-onset: $(STAMP)  ## onset on the stores of bench-paper
	$(BIN)/python benchmarks/onset.py --root $(MNIST) --stores bench-out/paper/store? --out bench-out/onset

bench-brightness: $(STAMP)  ## darker and brighter digits: detect beside predict --reject
	$(BIN)/python benchmarks/brightness.py --root $(MNIST) --out bench-out/brightness

bench-transfer: $(STAMP)  ## few images after other tasks against an empty store, on the stores of bench-paper
	$(BIN)/python benchmarks/transfer.py --root $(MNIST) --stores bench-out/paper/store? --out bench-out/transfer

bench-segmentation: $(STAMP)  ## boundaries in streams, and learning them
	$(BIN)/python benchmarks/segmentation.py --root $(MNIST) --out bench-out/segmentation --seeds 5 --learn

bench-hundred: $(STAMP)  ## a hundred tasks in one store, each learned by its own process
	$(BIN)/python benchmarks/hundred.py --root $(MNIST) --out bench-out/hundred

bench-ablation: $(STAMP)  ## score rule x density, before and after consolidation
	$(BIN)/python benchmarks/ablation.py --root $(MNIST) --out bench-out/ablation

bench-gate: $(STAMP)  ## every image by itself, without a task id
	$(BIN)/python benchmarks/gate.py --root $(MNIST) --out bench-out/gate

bench-defaults: $(STAMP)  ## the defaults on other data
	$(BIN)/python benchmarks/defaults.py --root $(MNIST) --out bench-out/defaults

bench-cnn: $(STAMP)  ## the paper's experiment with a convolutional expert, beside joint training
	$(BIN)/python benchmarks/cnn.py --root $(MNIST) --out bench-out/cnn

bench-colour: $(STAMP)  ## colour pictures in folders, every picture by itself, beside joint training
	$(BIN)/python benchmarks/colour.py --out bench-out/colour

bench-resnet: $(STAMP)  ## resnet18 on colour pictures: two tasks in one expert
	$(BIN)/python benchmarks/resnet.py --out bench-out/resnet

bench: $(STAMP)  ## speed beside plain PyTorch, as ratios of one run; how it grows, to a thousand small tasks
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py --root $(MNIST) --out bench-out/growth
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --root $(MNIST) --out bench-out/speed --grown bench-out/growth/store

bench-card: $(STAMP)  ## a graphics card beside all cores of its machine's processor, in four minutes
	$(BIN)/python benchmarks/card.py --root $(MNIST) --photos $(PHOTOS) --out bench-out/card

bench-memory: $(STAMP)  ## peak memory of learn on 20,000 pictures and of predict on 2 GB
	$(BIN)/python benchmarks/memory.py --out bench-out/memory

bench-processes: $(STAMP)  ## when several processes pay: steps, answers, one task (two idle cores)
	$(BIN)/python benchmarks/processes.py --root $(MNIST) --out bench-out/processes

bench-photos: $(STAMP)  ## photographs through lite0, all and few of a class, beside plainer tools on the same features (PHOTOS=folder)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/answers.py --photos $(PHOTOS) --out bench-out/photos --only photographs \
		--columns store discriminant ranpac linear mlp

bench-unknown: $(STAMP)  ## unknown photographs: p-values, rejections, onset (PHOTOS=folder)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/unknown_photographs.py --photos $(PHOTOS) --out bench-out/unknown

bench-pictures: $(STAMP)  ## pictures a second through lite0, cold and kept, and memory
	$(BIN)/python benchmarks/pictures_per_second.py --out bench-out/pictures --memory 40000

bench-peers: $(STAMP)  ## beside Avalanche, hat-cl, river and scikit-learn, each in its environment (PHOTOS=folder, OLD_PYTHON=3.9 or 3.10)
	$(BIN)/python benchmarks/peers.py --mnist $(MNIST) --photos $(PHOTOS) --venvs bench-out/venvs --install \
		--old-python $(OLD_PYTHON) --out bench-out/peers

bench-answers: $(STAMP)  ## evidence beside plainer tools, and reports beside answers (PHOTOS=folder of the photographs)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/answers.py --photos $(PHOTOS) --mnist $(MNIST) --out bench-out/answers --reuse
