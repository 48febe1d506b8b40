"""Readings of prefix beam search, one a JSON object of options, on the first LIMIT utterances.

    python -m bench.readings WORKDIR SOURCE LIMIT BEAMS '{"tau": 2}' '{"tau": 0.9}' ...

An empty SOURCE is the config's dev, LIMIT 0 all of it. The first reading is what the others' calls
are compared with.
"""
import sys, functools, time, dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from mtp_jax import cli
from mtp_jax.workdir import Workdir
from mtp_jax.model import load
from mtp_jax.comparison import Task
from mtp_jax.data import open_source
from mtp_jax.encoder_cache import with_encoder_cache
from mtp_jax.decode_step import encode, view
from mtp_jax.decoding.prefix_beam import PrefixBeam
from mtp_jax.metrics import word_errors
wd, data, limit, K = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
specs = sys.argv[5:]
w = Workdir(wd); c = w.read_config(); cli.start_jax(c)
r = load(w)
src = open_source(data or c.data.dev, c.data, c.front_end.sample_rate)
src = with_encoder_cache(src, r)
if limit: src = dataclasses.replace(src, utterances=src.utterances[:limit])
batches = list(Task.of(src, r).batches(16))
model=r.model
@functools.partial(jax.jit, static_argnums=0)
def run(model, params, batch, st):
    enc = encode(model, params, batch)
    return st.decode(view(model, params, enc), jnp.asarray(batch.index) >= 0, c.data.max_tokens)
n = c.evaluation.normalizer
def go(st):
    refs, lists, calls = [], [], 0
    for b in batches:
        b = b._replace(tokens=b.tokens[:, :0])
        d = jax.device_get(run(model, r.params, r.place(b), jax.tree.map(jnp.float32, st)))
        nb=d.nbest
        for i, ix in enumerate(b.index):
            if ix < 0: continue
            refs.append(src.utterances[ix].text); calls += int(d.calls[i])
            texts=[]
            for k in range(nb.tokens.shape[1]):
                if not nb.real[i,k]: continue
                t = nb.tokens[i,k,:nb.length[i,k]].tolist()
                if t and t[-1]==model.vocabulary.eos: t=t[:-1]
                texts.append(r.tokenizer.decode(t))
            lists.append(texts)
    one = word_errors(refs, [l[0] for l in lists], n)
    best=[]
    for ref, l in zip(refs, lists):
        errs=[sum(word_errors([ref],[t],n).errors) for t in l]
        best.append(l[int(np.argmin(errs))])
    return one.percent, word_errors(refs, best, n).percent, calls/len(refs), np.mean([len(set(l)) for l in lists])
base=None
for spec in specs:
    kw=json.loads(spec); kw.setdefault("beams",K)
    t=time.time(); o=go(PrefixBeam(**kw))
    if base is None: base=o
    print(f"{spec:60s} wer {o[0]:6.2f} oracle {o[1]:6.2f} calls {o[2]:6.2f} ({base[2]/o[2]:.2f}x) list {o[3]:.1f}  {time.time()-t:.0f}s", flush=True)
