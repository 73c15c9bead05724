"""Prefill of one picture prompt by chiasm and by PyTorch on the same checkpoint, both sides in this run.

    chiasm synth llava-1.5-7b DIR
    python bench/peers/prefill_peers.py DIR [--dtype bf16] [--rows 600] [--runs 5] [--threads 2] [--cache CACHE]

Both sides compute tower, projector and decoder over the same number of rows and the last row's logits. Torch runs transformers'
own LLaVA (sdpa attention, inference mode, warmed up by one run); chiasm runs `chiasm bench prefill`. The two take turns in blocks
(the weights of both do not fit into memory side by side): torch in its own process, then chiasm, --blocks times; the median of
all runs of a side is taken.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def torch_side(o):
    import torch
    import transformers
    torch.set_num_threads(o.threads)
    dtype = torch.float32 if o.dtype == "f32" else torch.bfloat16
    model = transformers.LlavaForConditionalGeneration.from_pretrained(o.model, dtype=dtype, attn_implementation="sdpa").eval()
    v = model.config.vision_config
    n = (v.image_size // v.patch_size) ** 2
    ids = torch.full((1, o.rows), 5)
    ids[0, 2:2 + n] = model.config.image_token_id
    pixels = torch.zeros(1, 3, v.image_size, v.image_size, dtype=dtype)
    times = []
    with torch.inference_mode():
        for i in range(o.runs + 1):
            t = time.perf_counter()
            model(input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=False)
            if i:
                times.append(time.perf_counter() - t)
    print(json.dumps({"times": times, "torch": torch.__version__, "transformers": transformers.__version__}))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    a.add_argument("--rows", type=int, default=600)
    a.add_argument("--runs", type=int, default=5, help="of each side, a block")
    a.add_argument("--blocks", type=int, default=2)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--cache", help="chiasm's --cache")
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    a.add_argument("--torch-side", action="store_true", help=argparse.SUPPRESS)
    o = a.parse_args()
    if o.torch_side:
        return torch_side(o)
    theirs, mine = [], []
    for _ in range(o.blocks):
        out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--torch-side"], check=True, stdout=subprocess.PIPE).stdout
        side = json.loads(out.splitlines()[-1])
        theirs += side["times"]
        command = [o.chiasm, "bench", "prefill", o.model, "--rows", str(o.rows), "--runs", str(o.runs), "--dtype", o.dtype,
                   "--threads", str(o.threads), "--json", "--quiet"] + (["--cache", o.cache] if o.cache else [])
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["rows"][0]
        mine.append(row["median_seconds"])
        print(f"block: torch {statistics.median(side['times']):.3f} s, chiasm {row['median_seconds']:.3f} s ({row['what']})", flush=True)
    t, c = statistics.median(theirs), statistics.median(mine)
    print(f"{o.rows} rows, {o.dtype}, {o.threads} threads, {o.blocks} blocks of {o.runs}; torch {side['torch']}, transformers "
          f"{side['transformers']}: torch {t:.3f} s, chiasm {c:.3f} s, ratio {t / c:.2f}")


if __name__ == "__main__":
    main()
