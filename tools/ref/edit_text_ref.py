"""ROME, MEMIT and fine-tuning of a language model by PyTorch, on the edits of a set: p(target) and seconds of each.

    python tools/ref/edit_text_ref.py SET.jsonl --model FILE.gguf --method rome --layer 5 --moments M.safetensors -o OUT.jsonl
    python tools/ref/edit_text_ref.py --compare CHIASM.jsonl OUT.jsonl

The formulas are those of edit_methods_ref.py (autograd, torch.optim.Adam, hooks, explicit inverses); the weights are those that
transformers reads from the GGUF file, in f32; options mean what they mean for `chiasm eval edits --raw`, whose log the second
form compares with. Seconds are those of one edit, from the first forward pass to the changed weights; the inverse of the second
moment is made once and counted apart.
Versions: torch 2.13.0, transformers 5.23.0, gguf 0.19.0 (tools/ref/requirements.txt).
"""
import argparse
import json
import pathlib
import re
import time

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import edit_methods_ref as ref


class Net:
    """What edit_methods_ref.Ask needs of a model, without pictures."""

    def __init__(self, file):
        path = pathlib.Path(file)  # a GGUF file, or a folder that save_pretrained wrote of it
        where = dict(pretrained_model_name_or_path=file) if path.is_dir() else \
            dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
        self.tok = AutoTokenizer.from_pretrained(**where)
        self.m = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
        for p in self.m.parameters():
            p.requires_grad_(False)
        self.layers = self.m.model.layers
        self.inv, self.inv_seconds = {}, 0.0

    def ids(self, text):
        enc = self.tok(text, return_offsets_mapping=True)
        return enc.input_ids, enc.offset_mapping

    def run(self, ids, pixels=None):
        return self.m(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    def moment(self, layer, c):
        """C of the file, shrunk, and its inverse"""
        if layer not in self.inv:
            start, f = time.perf_counter(), self.layers[layer].mlp.down_proj.weight.shape[1]
            full = torch.eye(f).double()
            self.inv[layer] = full, full
            if c["moments"]:
                with safe_open(c["moments"], "pt") as file:
                    s = file.get_tensor(f"decoder.{layer}.mlp_act.moment_sum")
                    keys = json.loads(file.metadata()["chiasm_moments"])["keys"]
                at = torch.triu_indices(f, f)
                full = torch.zeros(f, f).double()
                full[at[0], at[1]] = s / keys
                full = full + full.T - torch.diag(full.diagonal())
                full = (1 - c["shrink"]) * full + c["shrink"] * full.diagonal().mean() * torch.eye(f).double()
                self.inv[layer] = full, torch.linalg.inv(full)
            self.inv_seconds += time.perf_counter() - start
        return self.inv[layer]


class Ask(ref.Ask):
    """A text with a [bracket] and the target behind it; prompts: the bare one, then those behind prefixes."""

    def __init__(self, net, item, c):
        self.net, self.pix, self.prompts, self.kl = net, None, [], (None, None)
        words = re.search(r"\[(.*?)\]", item["request"]["question"]).group(1)
        plain = item["request"]["question"].replace("[", "").replace("]", "")
        for prefix in [None] + c["prefixes"]:
            text = (f"{prefix}. " if prefix else "") + plain
            ids, at = net.ids(text)
            whole, _ = net.ids(text + " " + item["request"]["target"])
            assert whole[:len(ids)] == ids
            self.target = whole[len(ids):]
            begin = text.rindex(words)
            end = begin + len(words)
            self.prompts.append((ids, max(i for i, (a, b) in enumerate(at) if a < end and b > begin and b > a)))

    def value(self, layer, norm, c):
        d = self.net.layers[layer].mlp.down_proj.weight.shape[0]
        return super().value(layer, norm, dict(c, lr=c["lr"] * float(norm) / d ** 0.5 if c["lr_share"] else c["lr"]))


def rome(net, a, c):
    layer = c["hi"]
    z0 = a.states(layer)["z"]
    delta = a.value(layer, z0.norm(), c)
    k, mean = a.key(layer, False)
    u = net.moment(layer, c)[1] @ k
    ref.change(net, layer, torch.outer(z0.double() + delta.double() - mean, u) / (k @ u))


def memit(net, a, c):
    h = a.states(c["hi"])["h"]
    z = h.double() + a.value(c["hi"], h.norm(), c).double()
    for layer in range(c["lo"], c["hi"] + 1):
        k = a.key(layer, True)[0][:, None]
        r = (z - a.states(c["hi"])["h"].double())[:, None] / (c["hi"] - layer + 1)
        lam = c["lambda"] * (k * k).sum() if c["lambda_share"] else c["lambda"]
        ref.change(net, layer, (torch.linalg.solve(lam * net.moment(layer, c)[0] + k @ k.T, k) @ r.T).T)


def ft(net, a, c):
    w = net.layers[c["hi"]].mlp.down_proj.weight
    first = w.detach().clone()
    w.requires_grad_(True)
    adam = torch.optim.Adam([w], lr=c["lr"])
    for _ in range(c["steps"]):
        adam.zero_grad()
        loss = -a.logp().mean()
        if loss.item() < c["stop"]:
            break
        loss.backward()
        adam.step()
        if c["max_change"]:
            with torch.no_grad():
                w.copy_(torch.clamp(w, first - c["max_change"], first + c["max_change"]))
    w.requires_grad_(False)
    w.grad = None


def edit(net, item, c):
    a = Ask(net, item, c)
    layers = range(c["lo"], c["hi"] + 1)
    saved = [net.layers[i].mlp.down_proj.weight.data.clone() for i in layers]
    for i in layers:
        if c["method"] != "ft":
            net.moment(i, c)
    with torch.no_grad():
        before = a.p()
    start = time.perf_counter()
    cpu = time.process_time()
    dict(rome=rome, memit=memit, ft=ft)[c["method"]](net, a, c)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    with torch.no_grad():
        after = a.p()
    for i, w in zip(layers, saved):
        net.layers[i].mlp.down_proj.weight.data.copy_(w)
    return {"item": item["id"], "p_before": before, "p_target": after, "seconds": seconds, "cpu": cpu}


def share(text, unit):
    return (float(text[:-len(unit)]), True) if text.endswith(unit) else (float(text), False)


def read(path):
    return [json.loads(x) for x in pathlib.Path(path).read_text().splitlines() if x.strip()]


def write_csv(path, ours, mine):
    """a row for each edit of chiasm's log; p_torch is empty where PyTorch did not make it"""
    kept = {"paraphrase": "paraphrases_followed", "same_relation": "neighbours_kept"}
    with open(path, "a") as f:
        if f.tell() == 0:
            print("method,item,p_before,p_target,p_torch,target_said,steps," + ",".join(kept.values()), file=f)
        for k, x in ours.items():
            said = ["" if name not in x["probes"] else x["probes"][name]["kept"] for name in kept]
            print(x["editor"], k, f"{x['p_before']:.6g}", f"{x['p_target']:.6f}",
                  f"{mine[k]['p_target']:.6f}" if k in mine else "", int(x["reliable"]), x.get("edit", {}).get("steps", ""), *said,
                  sep=",", file=f)


def compare(chiasm, mine, csv):
    ours = {x["item"]: x for x in read(chiasm) if "item" in x and x["editor"] in ("rome", "memit", "ft")}
    theirs = {x["item"]: x for x in read(mine)}
    if csv:
        write_csv(csv, ours, theirs)
    both = [(x, theirs[k]) for k, x in ours.items() if k in theirs]
    gap = sorted(abs(a["p_target"] - b["p_target"]) for a, b in both)
    base = max(abs(a["p_before"] - b["p_before"]) for a, b in both)
    print(f"{len(both)} edits in both; |difference of p(target)|: median {gap[len(gap) // 2]:.2g}, largest {gap[-1]:.2g}, "
          f"{sum(g <= 0.02 for g in gap)} within 0.02; before the edit at most {base:.2g}")
    for name, i in (("chiasm", 0), ("torch", 1)):
        print(f"  mean p(target) {name} {sum(x[i]['p_target'] for x in both) / len(both):.4f}")
    print(f"  torch: {sum(b['seconds'] for _, b in both) / len(both):.2f} s an edit, "
          f"{sum(b['cpu'] for _, b in both) / len(both):.2f} s of CPU")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("set", nargs="?")
    ap.add_argument("--compare", nargs=2)
    ap.add_argument("--csv", help="with --compare: add a row for each edit")
    ap.add_argument("--model")
    ap.add_argument("--method", choices=("rome", "memit", "ft"))
    ap.add_argument("--layer")
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--lr", default="0.4z")
    ap.add_argument("--stop", type=float, default=0)
    ap.add_argument("--decay", type=float, default=1e-3)
    ap.add_argument("--clamp", type=float, default=10)
    ap.add_argument("--lambda", dest="lam", default="0.01kk")
    ap.add_argument("--shrink", type=float, default=0.1)
    ap.add_argument("--max-change", type=float, default=0)
    ap.add_argument("--moments")
    ap.add_argument("--prefixes")
    ap.add_argument("--split", default="all")
    ap.add_argument("--limit", type=int, default=0)
    ap.add_argument("-o", "--out")
    a = ap.parse_args()
    if a.compare:
        return compare(*a.compare, a.csv)
    torch.set_num_threads(1)
    lo, _, hi = a.layer.partition("-")
    c = dict(method=a.method, lo=int(lo), hi=int(hi or lo), steps=a.steps, stop=a.stop, decay=a.decay, clamp=a.clamp, kl=0.0,
             shrink=a.shrink, max_change=a.max_change, moments=a.moments,
             prefixes=[x.strip(" .") for x in pathlib.Path(a.prefixes).read_text().splitlines()] if a.prefixes else [])
    c["lr"], c["lr_share"] = share(a.lr, "z")
    c["lambda"], c["lambda_share"] = share(a.lam, "kk")
    items = [x for x in read(a.set) if a.split in ("all", x["split"])]
    items = [x for k in range(5) for x in items[k::5]]  # in the order of `chiasm eval edits`: every fifth first
    net, out = Net(a.model), pathlib.Path(a.out)
    done = {x["item"] for x in read(out)} if out.exists() else set()  # a run that was stopped goes on
    with out.open("a") as f:
        for x in items[:a.limit or None]:
            if x["id"] not in done:
                f.write(json.dumps(dict(edit(net, x, c), method=a.method)) + "\n")
                f.flush()
    print(f"second moments: {net.inv_seconds:.2f} s")


if __name__ == "__main__":
    main()
