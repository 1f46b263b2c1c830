# A thin face over `python -m jobs`. `make` alone prints this help. What has no variable of its own
# goes through ARGS, for example ARGS='--temperature 0.7 --top-p 0.9'.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
JOBS = $(VENV)/bin/python -m jobs

# flag VAR name: `--name 'value'` where the variable was given, nothing where it was not.
flag = $(if $(strip $($(1))),--$(2) '$(subst ','\'',$($(1)))')
need = $(if $(strip $($(1))),,$(error $@ needs $(1)=...   for example: make $@ $(2)))

HOW = $(call flag,OUT,out) $(call flag,RUN,run) $(call flag,WORKERS,workers) \
      $(call flag,EXECUTOR,executor) $(call flag,ADDRESS,address) \
      $(call flag,MAX_FAILED,max-failed) $(call flag,LIMIT,limit) $(if $(DRY_RUN),--dry-run)
CAPTION = $(call flag,SHARDS,shards) $(call flag,CAPTIONER,captioner) $(call flag,STYLES,styles) \
      $(call flag,BATCH,batch-size) $(call flag,THREADS,threads) \
      $(call flag,PRECISION,precision) $(call flag,DEVICE,device) $(call flag,BEAMS,beams) \
      $(call flag,CANDIDATES,candidates) $(if $(filter-out 0,$(EMBEDDINGS)),--embeddings) \
      $(call flag,PROMPTS,prompts) $(call flag,IN_FLIGHT,in-flight) \
      $(call flag,DEADLINE,deadline) $(call flag,IMAGE_SIDE,image-side)
MIX = $(call flag,BLEND,blend) $(call flag,KEEP,keep) $(call flag,SEED,seed) \
      $(call flag,MAX_SIDE,max-side)
FETCH = $(call flag,ALLOW_PRIVATE,allow-private) $(call flag,CONTACT,contact) $(call flag,THREADS,threads) \
      $(call flag,PER_HOST,per-host) $(call flag,HOST_DELAY,host-delay)
CRAWL = $(FETCH) $(call flag,URLS,urls) $(call flag,URL_COL,url-col) $(call flag,CAPTION_COL,caption-col) \
      $(call flag,SHARD_SIZE,shard-size) $(call flag,RESIZE,resize) $(call flag,SIZE,size)
ANNOTATE = $(call flag,STAGES,stages) $(call flag,CLIP,clip) \
      $(call flag,AESTHETIC_HEAD,aesthetic-head) $(call flag,NSFW_HEAD,nsfw-head) \
      $(call flag,WATERMARK_HEAD,watermark-head) $(call flag,BLOCKLISTS,blocklists) \
      $(call flag,FACE_DETECTOR,face-detector) $(call flag,DEVICE,device)
SELECT = $(call flag,WHERE,where) $(call flag,TOP,top)
TRAIN = $(call flag,SHARDS,shards) $(call flag,OUT,out) $(call flag,INIT,init) \
      $(call flag,HELD_OUT,held-out) $(call flag,STEPS,steps) $(call flag,LR,lr) \
      $(call flag,BATCH,batch-size) $(call flag,IMAGE_TOWER,image-tower) $(call flag,LORA,lora) \
      $(call flag,SEED,seed) $(call flag,THREADS,threads) $(call flag,DEVICE,device)

.PHONY: help setup recaption curate crawl crawl-retry import annotate dedup select keep-export keep-import reshard takedown caption mix fuse upsample scenes stats sql calibrate evaluate-captions captioner captioner-train teach train encode sample edit evaluate-generator experiment export gate test test-all test-vllm bench lint format pins clean

help:        ## Show this help
	@awk -F '## ' '/^[a-z-]+:.*## / {split($$1, t, ":"); printf "  %-18s %s\n", t[1], $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make .venv with every pinned package (the other targets do so by themselves)

recaption: $(READY)  ## Shards to training shards; a demo without SHARDS.  SHARDS= OUT= CAPTIONER= [BLEND=95] [STYLES=short,long] [RUN=] [WORKERS=] [LIMIT=]
	$(if $(strip $(SHARDS)),$(call need,OUT,SHARDS='raw/{00000..00099}.tar' OUT=data/mine CAPTIONER=<name>))
	@$(JOBS) recaption $(HOW) $(CAPTION) $(MIX) $(ARGS)

curate: $(READY)  ## URL lists to training shards: all of the verbs below.  URLS= OUT= [LIST=laion] [STAGES=] [PRESET=datacomp-basic] [WHERE=] [TOP=] [CAPTIONER=] [BLEND=95]
	$(call need,URLS,URLS=urls.parquet LIST=laion PRESET=datacomp-basic OUT=data/mine CAPTIONER=<name>)
	$(call need,OUT,URLS=urls.parquet LIST=laion PRESET=datacomp-basic OUT=data/mine CAPTIONER=<name>)
	@$(JOBS) curate $(HOW) $(CRAWL) $(call flag,LIST,preset) $(ANNOTATE) $(call flag,KINDS,kinds) $(call flag,RADIUS,radius) $(call flag,PRESET,select) $(SELECT) $(call flag,CAPTIONER,captioner) $(call flag,STYLES,styles) $(call flag,BLEND,blend) $(call flag,SEED,seed) $(call flag,MAX_SIDE,max-side) $(ARGS)

crawl: $(READY)  ## Images of URL lists into raw shards.  URLS= OUT= [PRESET=laion|datacomp|cc3m|coyo] [RESIZE=no] [SIZE=] [CONTACT=]
	$(call need,URLS,URLS='lists/*.parquet' PRESET=laion OUT=data/mine)
	$(call need,OUT,URLS='lists/*.parquet' PRESET=laion OUT=data/mine)
	@$(JOBS) crawl $(HOW) $(CRAWL) $(call flag,PRESET,preset) $(ARGS)

crawl-retry: $(READY)  ## Fetch again what failed for reasons that may pass, into new shards.  OUT=
	$(call need,OUT,OUT=data/mine)
	@$(JOBS) crawl-retry $(HOW) $(FETCH) $(ARGS)

import: $(READY)  ## Any image-text set of `datasets` into raw shards.  DATASET= OUT= [SPLIT=train] [IMAGE_COL=] [CAPTION_COL=]
	$(call need,DATASET,DATASET=<hub name or folder> OUT=data/mine)
	$(call need,OUT,DATASET=<hub name or folder> OUT=data/mine)
	@$(JOBS) import $(HOW) $(call flag,DATASET,dataset) $(call flag,SUBSET,subset) $(call flag,SPLIT,split) $(call flag,IMAGE_COL,image-col) $(call flag,CAPTION_COL,caption-col) $(call flag,SHARD_SIZE,shard-size) $(ARGS)

annotate: $(READY)  ## A column for everything there is to know.  OUT= [SHARDS=] [STAGES=image,text] [CLIP=] [AESTHETIC_HEAD=] ...
	$(call need,OUT,SHARDS='raw/*.tar' OUT=data/mine STAGES=image,text)
	@$(JOBS) annotate $(HOW) $(call flag,SHARDS,shards) $(ANNOTATE) $(call flag,THREADS,threads) $(call flag,BATCH,batch-size) $(ARGS)

dedup: $(READY)  ## Exact, near and semantic duplicates, and evaluation sets.  OUT= [KINDS=exact,perceptual] [RADIUS=4] [EVALUATION=]
	$(call need,OUT,OUT=data/mine KINDS=exact,perceptual)
	@$(JOBS) dedup $(HOW) $(call flag,KINDS,kinds) $(call flag,RADIUS,radius) $(call flag,SIMILARITY_ABOVE,similarity-above) $(call flag,KEEP_RULE,keep-rule) $(call flag,CLIP,clip) $(call flag,EVALUATION,evaluation) $(call flag,MEMORY_GB,memory-gb) $(ARGS)

select: $(READY)  ## A keep-list by SQL.  OUT= [WHERE="width >= 256 and language = 'en'"] [PRESET=datacomp-basic] [TOP='30 % by similarity']
	$(call need,OUT,OUT=data/mine WHERE="width >= 256")
	@$(JOBS) select $(HOW) $(SELECT) $(call flag,PRESET,preset) $(call flag,TARGET,target) $(call flag,CLUSTERS,clusters) $(call flag,RUNS,runs) $(ARGS)

keep-export: $(READY)  ## A keep-list as DataComp's uid file.  OUT= KEEP=<run> FILE=uids.npy
	$(call need,OUT,OUT=data/mine KEEP=<run> FILE=uids.npy)
	@$(JOBS) keep-export $(call flag,OUT,out) $(call flag,KEEP,keep) $(call flag,FILE,file) $(ARGS)

keep-import: $(READY)  ## DataComp's uid file as a keep-list.  OUT= FILE=uids.npy [RUN=]
	$(call need,OUT,OUT=data/mine FILE=uids.npy)
	@$(JOBS) keep-import $(HOW) $(call flag,FILE,file) $(ARGS)

reshard: $(READY)  ## Balanced shards of what a keep-list keeps.  OUT= [KEEP=<run>] [TO=] [SHARD_SIZE=10000] [SEED=]
	$(call need,OUT,OUT=data/mine KEEP=<run> TO=data/balanced)
	@$(JOBS) reshard $(HOW) $(call flag,SHARDS,shards) $(call flag,TO,to) $(call flag,KEEP,keep) $(call flag,SHARD_SIZE,shard-size) $(call flag,SEED,seed) $(ARGS)

takedown: $(READY)  ## Remove samples everywhere, and keep them out.  OUT= UIDS=|SHA256S=|URLS= [REASON=] [DRY_RUN=1]
	$(call need,OUT,OUT=data/mine UIDS=<uid>)
	@$(JOBS) takedown $(call flag,OUT,out) $(call flag,UIDS,uids) $(call flag,SHA256S,sha256s) $(call flag,URLS,urls) $(call flag,REASON,reason) $(if $(UNKNOWN),--unknown) $(if $(DRY_RUN),--dry-run) $(ARGS)

caption: $(READY)  ## Captions only.  SHARDS= OUT= CAPTIONER= [STYLES=] [KEEP=<run>] [RUN=]
	$(call need,SHARDS,SHARDS='raw/*.tar' OUT=data/mine CAPTIONER=<name>)
	$(call need,OUT,SHARDS='raw/*.tar' OUT=data/mine CAPTIONER=<name>)
	@$(JOBS) caption $(HOW) $(CAPTION) $(call flag,KEEP,keep) $(ARGS)

mix: $(READY)  ## Training shards from captions.  OUT= CAPTIONS=<run> [BLEND=95] [KEEP=<run>] [RUN=]
	$(call need,OUT,OUT=data/mine CAPTIONS=<run> BLEND=80)
	@$(JOBS) mix $(HOW) $(call flag,SHARDS,shards) $(call flag,CAPTIONS,captions) $(MIX) $(ARGS)

fuse: $(READY)  ## Originals and synthetic captions fused, a run for BLEND.  OUT= CAPTIONS=<run> MODEL=openai:<model>@<url> [STYLE=long] [RUN=]
	$(call need,OUT,OUT=data/mine CAPTIONS=<run> MODEL=openai:<model>@http://127.0.0.1:8000/v1)
	$(call need,CAPTIONS,OUT=data/mine CAPTIONS=<run> MODEL=openai:<model>@http://127.0.0.1:8000/v1)
	$(call need,MODEL,OUT=data/mine CAPTIONS=<run> MODEL=openai:<model>@http://127.0.0.1:8000/v1)
	@$(JOBS) fuse $(HOW) $(call flag,CAPTIONS,captions) $(call flag,MODEL,model) $(call flag,STYLE,style) $(call flag,INSTRUCTION,instruction) $(call flag,SEED,seed) $(call flag,IN_FLIGHT,in-flight) $(call flag,DEADLINE,deadline) $(ARGS)

upsample: $(READY)  ## A terse prompt made descriptive, or a file of them.  PROMPT='a cat' MODEL=openai:<model>@<url> [PROMPTS=<file> OUT=<file>.parquet] [SEED=]
	$(call need,MODEL,PROMPT='a cat' MODEL=openai:<model>@http://127.0.0.1:8000/v1)
	@$(JOBS) upsample $(call flag,MODEL,model) $(call flag,PROMPT,prompt) $(call flag,PROMPTS,prompts) $(call flag,OUT,out) $(call flag,INSTRUCTION,instruction) $(call flag,SEED,seed) $(call flag,LIMIT,limit) $(call flag,IN_FLIGHT,in-flight) $(call flag,DEADLINE,deadline) $(if $(DRY_RUN),--dry-run) $(ARGS)

scenes: $(READY)  ## Raw shards of rendered scenes, truth included.  OUT= [LEVEL=B] [N=1000] [SPLIT=train] [SEED=] [LIMIT=]
	$(call need,OUT,OUT=data/scenes LEVEL=B N=10000)
	@$(JOBS) scenes $(HOW) $(call flag,LEVEL,level) $(call flag,N,n) $(call flag,SPLIT,split) $(call flag,SEED,seed) $(ARGS)

stats: $(READY)  ## Statistics, or any SQL.  OUT= [Q='select ...']
	$(call need,OUT,OUT=data/mine)
	@$(JOBS) stats $(call flag,OUT,out) $(call flag,Q,q) $(call flag,RUN,run)

sql: $(READY)  ## A SQL prompt over the catalog.  OUT=
	$(call need,OUT,OUT=data/mine)
	@$(JOBS) sql $(call flag,OUT,out)

calibrate: $(READY)  ## Save a captioner with thresholds for off-image captions.  CAPTIONER= SHARDS= OUT=<directory>
	$(call need,CAPTIONER,CAPTIONER=<name> SHARDS='raw/00000.tar' OUT=my-captioner)
	@$(JOBS) calibrate $(call flag,CAPTIONER,captioner) $(call flag,SHARDS,shards) $(call flag,OUT,out) $(call flag,LIMIT,limit) $(call flag,THREADS,threads) $(call flag,DEVICE,device)

evaluate-captions: $(READY)  ## Measure captions: BLEU to hallucination and drift.  OUT= [RUN=] [REFERENCES=<file>] [SCORER=<name>] [OBJECTS=<json>] [LIMIT=]
	$(call need,OUT,OUT=data/mine RUN=<run> REFERENCES=captions.jsonl)
	@$(JOBS) evaluate-captions $(call flag,OUT,out) $(call flag,RUN,run) $(call flag,REFERENCES,references) $(call flag,SCORER,scorer) $(call flag,SHARDS,shards) $(call flag,OBJECTS,objects) $(call flag,LIMIT,limit) $(call flag,BATCH,batch-size) $(call flag,THREADS,threads) $(call flag,DEVICE,device)

captioner: $(READY)  ## Train the bundled captioner anew: an hour on two cores.  [EXTRA=<folder>] [SEED=] [OUT=<directory>] [DRY_RUN=1]
	@$(JOBS) captioner $(call flag,OUT,out) $(call flag,EXTRA,extra) $(call flag,SEED,seed) $(call flag,THREADS,threads) $(call flag,DEVICE,device) $(if $(DRY_RUN),--dry-run) $(ARGS)

captioner-train: $(READY)  ## Train a captioner on your pairs.  SHARDS= OUT= [STYLE=base|short|long] [CAPTIONS=<file or run>] [INIT=<name|scratch>] [HELD_OUT=]
	$(call need,SHARDS,SHARDS='raw/*.tar' CAPTIONS=short.jsonl STYLE=short OUT=my-captioner)
	$(call need,OUT,SHARDS='raw/*.tar' CAPTIONS=short.jsonl STYLE=short OUT=my-captioner)
	@$(JOBS) captioner-train $(TRAIN) $(call flag,CAPTIONS,captions) $(call flag,STYLE,style) $(call flag,MODEL,model) $(call flag,CONTEXT,context) $(call flag,EPOCHS,epochs) $(call flag,PRESET,preset) $(if $(DRY_RUN),--dry-run) $(ARGS)

teach: $(READY)  ## A chat model's captions, taught to a captioner.  SHARDS= TEACHER=openai:<model>@<url> OUT= [N=10000] [HELD_OUT=500] [INIT=]
	$(call need,SHARDS,SHARDS='raw/*.tar' TEACHER=openai:<model>@http://127.0.0.1:8000/v1 OUT=data/taught)
	$(call need,TEACHER,SHARDS='raw/*.tar' TEACHER=openai:<model>@http://127.0.0.1:8000/v1 OUT=data/taught)
	$(call need,OUT,SHARDS='raw/*.tar' TEACHER=openai:<model>@http://127.0.0.1:8000/v1 OUT=data/taught)
	@$(JOBS) teach $(TRAIN) $(call flag,TEACHER,teacher) $(call flag,N,n) $(call flag,STYLES,styles) $(call flag,PROMPTS,prompts) $(call flag,IN_FLIGHT,in-flight) $(call flag,DEADLINE,deadline) \
	  $(call flag,EXECUTOR,executor) $(if $(DRY_RUN),--dry-run) $(ARGS)

train: $(READY)  ## Train a generator on training shards.  MODEL=dvae|dalle|prior|decoder|latent|... SHARDS= OUT= [PRESET=toy] [FIRST_STAGE=] [CLIP=|TEXT=] [INIT=] [PRIOR_CAPTIONS=] [HELD_OUT=] [CACHE=] [BUCKETS=1] [STEPS=] [ADDRESS=]
	$(call need,MODEL,MODEL=dvae SHARDS=data/mine/mix/<run> OUT=my-dvae)
	$(call need,SHARDS,MODEL=dvae SHARDS=data/mine/mix/<run> OUT=my-dvae)
	$(call need,OUT,MODEL=dvae SHARDS=data/mine/mix/<run> OUT=my-dvae)
	@$(JOBS) train $(call flag,MODEL,model) $(call flag,SHARDS,shards) $(call flag,OUT,out) $(call flag,PRESET,preset) $(call flag,HELD_OUT,held-out) $(call flag,FIRST_STAGE,first-stage) $(call flag,CLIP,clip) $(call flag,TEXT,text) $(call flag,LENGTH,length) $(call flag,CLASSES,classes) $(call flag,INIT,init) $(call flag,PRIOR_CAPTIONS,prior-captions) $(call flag,CACHE,cache) $(call flag,CAPTIONS,captions) $(call flag,DROP,drop) $(call flag,CROP,crop) $(if $(filter-out 0,$(BUCKETS)),--buckets) \
	  $(call flag,STEPS,steps) $(call flag,BATCH,batch-size) $(call flag,LR,lr) $(call flag,PRECISION,precision) $(call flag,PARALLEL,parallel) $(if $(filter-out 0,$(COMPILE)),--compile) $(call flag,SEED,seed) $(call flag,DEVICE,device) $(call flag,THREADS,threads) $(call flag,WORKERS,workers) $(call flag,ADDRESS,address) $(call flag,NODES,nodes) $(if $(DRY_RUN),--dry-run) $(ARGS)

encode: $(READY)  ## Cache a mix's tokens, latents or embeddings.  SHARDS= OUT= FIRST_STAGE=|CLIP=<open_clip model>:<tag> [TEXT=t5:<folder>|...] [LENGTH=] [RUN=]
	$(call need,SHARDS,SHARDS=data/mine/mix/<run> OUT=data/mine FIRST_STAGE=my-dvae)
	$(call need,OUT,SHARDS=data/mine/mix/<run> OUT=data/mine FIRST_STAGE=my-dvae)
	@$(JOBS) encode $(HOW) $(call flag,SHARDS,shards) $(call flag,FIRST_STAGE,first-stage) $(call flag,CLIP,clip) $(call flag,TEXT,text) $(call flag,LENGTH,length) $(call flag,SIZE,size) $(call flag,DEVICE,device) $(call flag,THREADS,threads) $(ARGS)

STACK = $(call flag,CKPT,ckpt) $(call flag,PRIOR,prior) $(call flag,UPSAMPLERS,upsamplers) $(call flag,CLIP,clip) $(call flag,FIRST_STAGE,first-stage) $(call flag,TEXT,text) $(call flag,DECODER,decoder) $(call flag,LORA,lora) $(call flag,CONTROLNET,controlnet) $(call flag,CONTROL,control) $(call flag,SIZE,size) $(call flag,VIA,via) $(call flag,SEED,seed) $(call flag,GUIDANCE,guidance) $(call flag,SAMPLER,sampler) $(call flag,STEPS,steps) $(call flag,ETA,eta) $(call flag,DEVICE,device) $(call flag,THREADS,threads)

sample: $(READY)  ## Pictures of a trained generator.  CKPT= PROMPT="a red circle on grass" [N=16] [OUT=samples] [GUIDANCE=] [RERANK=bundled] [UPSAMPLE=1 CHAT=openai:<model>@<url>|UPSAMPLE=template] [IMAGE=]; of a decoder PRIOR= CLIP= [UPSAMPLERS=a,b] [VIA=]; of a latent FIRST_STAGE= TEXT= [DECODER=] [LORA=] [CONTROLNET= CONTROL=] [SIZE=320x192]
	$(call need,CKPT,MODEL=dalle CKPT=my-dalle PROMPT="a red circle on grass" N=16)
	@$(JOBS) sample $(STACK) $(call flag,MODEL,model) $(call flag,PROMPT,prompt) $(call flag,PROMPTS,prompts) $(call flag,N,n) $(call flag,OUT,out) $(call flag,RERANK,rerank) $(if $(filter-out 0,$(UPSAMPLE)),$(call flag,UPSAMPLE,upsample)) $(call flag,CHAT,chat) $(call flag,IMAGE,image) $(ARGS)

edit: $(READY)  ## Pictures changed.  EDIT=variations|interpolate|text-diff|inpaint|compare CKPT= CLIP= IMAGE= [TO_IMAGE=] [FROM= TO= STRENGTH=] [MASK= PROMPT=] [PRIOR=] [STEPS=] [N=8] [OUT=edits]
	$(call need,EDIT,EDIT=variations CKPT=my-decoder CLIP=<towers> IMAGE=cat.png)
	$(call need,CKPT,EDIT=variations CKPT=my-decoder CLIP=<towers> IMAGE=cat.png)
	@$(JOBS) edit $(STACK) $(call flag,EDIT,edit) $(call flag,IMAGE,image) $(call flag,TO_IMAGE,to-image) $(call flag,FROM,before) $(call flag,TO,after) $(call flag,STRENGTH,strength) $(call flag,MASK,mask) $(call flag,PROMPT,prompt) $(call flag,N,n) $(call flag,OUT,out) $(ARGS)

evaluate-generator: $(READY)  ## FID, CLIP score, exact prompt following, a judge.  CKPT= OUT= SHARDS=|LEVEL=A16|PROMPTS= [CAPTIONS=original,long] [JUDGE=openai:<model>@<url>] [N=1000] [FEATURES=inception:<file>] [SCORER=]
	$(call need,CKPT,CKPT=my-dalle SHARDS=data/mine/mix/<other run> OUT=my-dalle/evaluation)
	$(call need,OUT,CKPT=my-dalle SHARDS=data/mine/mix/<other run> OUT=my-dalle/evaluation)
	@$(JOBS) evaluate-generator $(STACK) $(call flag,OUT,out) $(call flag,SHARDS,shards) $(call flag,LEVEL,level) $(call flag,PROMPTS,prompts) $(call flag,N,n) $(call flag,CAPTIONS,captions) $(call flag,JUDGE,judge) $(call flag,FEATURES,features) $(call flag,SCORER,scorer) $(ARGS)

export: $(READY)  ## A trained model as a folder that diffusers runs.  OUT= PRIOR= DECODER= UPSAMPLER= CLIP=, or MODEL=<a latent's folder> FIRST_STAGE= TEXT=
	$(call need,OUT,MODEL=my-latent FIRST_STAGE=my-kl TEXT=ViT-L-14:openai OUT=my-pipeline)
	@$(JOBS) export $(call flag,PRIOR,prior) $(call flag,DECODER,decoder) $(call flag,UPSAMPLER,upsampler) $(call flag,CLIP,clip) $(call flag,MODEL,model) $(call flag,FIRST_STAGE,first-stage) $(call flag,TEXT,text) $(call flag,OUT,out) $(ARGS)

experiment: $(READY)  ## Do better captions make better generators? Raw shards to table and plot.  OUT= [PRESET=cpu|gpu] [SEEDS=3]
	$(call need,OUT,OUT=data/experiment)
	@$(JOBS) experiment $(call flag,OUT,out) $(call flag,PRESET,preset) $(call flag,SEEDS,seeds) $(call flag,SIDE_BY_SIDE,side-by-side) $(if $(DRY_RUN),--dry-run) $(ARGS)

gate: $(READY)  ## Train a toy model on the rendered world, and measure whether what it makes is right.  MODEL=dvae [SEED=]
	$(call need,MODEL,MODEL=dvae)
	@$(JOBS) gate $(call flag,MODEL,model) $(call flag,SEED,seed) $(call flag,THREADS,threads) $(call flag,DEVICE,device) $(ARGS)

QUICK_TESTS = not slow and not gpu and not vllm

test: $(READY)  ## Tests, offline, on CPU
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m '$(QUICK_TESTS) and not ray'
	$(VENV)/bin/python -m pytest -m '$(QUICK_TESTS) and ray'   # Ray has all cores to itself

test-all: $(READY)  ## The slow tests, too
	$(VENV)/bin/python -m pytest -m 'not gpu and not vllm'

test-vllm: $(VLLM_READY)  ## Tests with vLLM's build for CPUs, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/captioner/test_vllm.py

bench: $(READY)  ## Speed as ratios against named peers.  [DATA=<folder of test data>] [QUICK=1]
	$(VENV)/bin/python -m tests.benchmarks $(call flag,DATA,data) $(if $(QUICK),--quick)

lint: $(READY)  ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)  ## Let ruff rewrite the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

pins: $(READY)  ## Resolve pyproject.toml anew into requirements/*.txt
	$(VENV)/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-emit-index-url --no-emit-find-links requirements/uv.in -o requirements/uv.txt
	$(VENV)/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-emit-index-url --no-emit-find-links --override requirements/overrides.txt \
	  --extra dev --extra s3 --extra crawl --extra faces --extra fid --extra train pyproject.toml -o requirements/lock.txt
	$(VENV)/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-emit-index-url --no-emit-find-links --override requirements/overrides.txt --override requirements/vllm-overrides.txt \
	  --extra dev pyproject.toml requirements/vllm.in -o requirements/vllm.txt

clean:       ## Remove .venv and caches
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache

# Pins are installed without resolving anew: the overrides that made them are not in the files.
$(READY): requirements/lock.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "recaption needs Python 3.11 or newer; give one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "making $(VENV), once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python --no-deps --require-hashes -r requirements/lock.txt
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

$(VLLM_READY): requirements/vllm.txt | $(READY)
	@echo "making $(VLLM_VENV), once"
	@$(VENV)/bin/uv venv -q --clear --python $(VENV)/bin/python $(VLLM_VENV)
	@$(VENV)/bin/uv pip install -q --python $(VLLM_VENV)/bin/python --no-deps --require-hashes -r requirements/vllm.txt
	@touch $@
