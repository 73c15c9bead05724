"""Makes every reference fixture again: python tools/ref/make_all.py

Each maker is a script of its own, run here one after the other; the ones that other parts add are called when present.
Needs the packages of tools/ref/requirements.txt. The demo maps need the trained demo model and are made by
make_demo_maps.py.
"""
import pathlib
import subprocess
import sys

MAKERS = ["tiny_models.py", "tiny_families.py", "make_tiny_blip2.py", "tiny_maps.py", "controls_ref.py", "planted.py", "attribute_ref.py", "explain_ref.py", "explain_items.py", "gguf_fixtures.py", "gguf_corpus.py"]
HERE = pathlib.Path(__file__).resolve().parent
OTHERS = sorted(p.name for pattern in ("*tokenizer*.py", "*image*.py", "make_*.py") for p in HERE.glob(pattern)
                if p.name not in ("make_all.py", "make_demo_maps.py", *MAKERS))

for name in MAKERS + OTHERS:
    if (HERE / name).exists():
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / name)], check=True)
