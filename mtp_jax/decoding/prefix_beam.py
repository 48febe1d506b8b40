"""Prefix beam search over the heads: an n-best list in fewer calls. EXPERIMENT: several readings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, Model
from mtp_jax.nn.cache import KVCache

NEVER = -1e9


@struct.dataclass
class NBest:
    tokens: jax.Array  # [B, K, L]
    length: jax.Array  # [B, K]
    token_scores: jax.Array  # [B, K, L]
    score: jax.Array


@struct.dataclass
class PrefixBeam:
    beams: int = struct.field(pytree_node=False, default=4)
    reading: str = struct.field(pytree_node=False, default="level")
    rescore: bool = struct.field(pytree_node=False, default=True)
    merge: str = struct.field(pytree_node=False, default="none")
    confidence: str = struct.field(pytree_node=False, default="mean")
    tau: float = 0.9
    bonus: float = 0.0
    margin: float = 1e6

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        nbest, calls, steps = self.search(model, active, max_tokens)
        none = jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        return Decoded(nbest.tokens[:, 0], nbest.length[:, 0], calls, none, none, steps)

    def search(self, model: Model, active: jax.Array, max_tokens: int):
        B, K, M, L = active.shape[0], self.beams, model.heads, max_tokens

        def log_probs(hidden):  # [.., D] -> [.., M, V]
            first = jax.nn.log_softmax(model.next_token(hidden))[..., None, :]
            return jnp.concatenate([first, jax.nn.log_softmax(model.later_tokens(hidden))], axis=-2)

        hidden, cache = model.prefill()
        V = model.next_token(hidden).shape[-1]
        state = _State(
            tokens=jnp.zeros((B, K, L), jnp.int32),
            length=jnp.zeros((B, K), jnp.int32),
            token_scores=jnp.zeros((B, K, L)),
            ended=jnp.zeros((B, K), bool),
            alive=jnp.broadcast_to((jnp.arange(K) == 0) & active[:, None], (B, K)),
            cache=cache.branched(K, L),
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
        )
        lp = log_probs(jnp.repeat(hidden[:, None], K, axis=1))
        state = self.expand(state, lp, model.eos)

        def fed(s):
            return s.cache.length.reshape(B, K)

        def settled(s):
            done = s.ended & ((fed(s) >= s.length - 1) | (not self.rescore))
            return done | ~s.alive

        def unfinished(s):
            return jnp.any(~settled(s))

        def step(s: _State) -> _State:
            going = jnp.any(~settled(s), axis=1)  # [B]
            start = fed(s)
            count = jnp.where(going[:, None] & s.alive, jnp.minimum(s.length - start, M), 0)
            slots = start[..., None] + jnp.arange(M)
            block = jnp.take_along_axis(s.tokens, jnp.minimum(slots, L - 1), axis=2)
            hidden, cache = model.extend(block.reshape(B * K, M), count.reshape(-1), s.cache)
            hidden = hidden.reshape(B, K, M, -1)
            new = dataclasses.replace(s, cache=cache, calls=s.calls + going, steps=s.steps + 1)
            if self.rescore and M > 1:
                first = jax.nn.log_softmax(model.next_token(hidden[:, :, :-1]))  # [B,K,M-1,V]
                nxt = block[:, :, 1:]
                exact = jnp.take_along_axis(first, nxt[..., None], axis=-1)[..., 0]
                ok = jnp.arange(1, M) < count[..., None]
                where = jnp.where(ok, slots[..., 1:], L)
                b, k = jnp.arange(B)[:, None, None], jnp.arange(K)[:, None]
                new = dataclasses.replace(
                    new, token_scores=new.token_scores.at[b, k, where].set(exact, mode="drop")
                )
            last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[..., None, None], axis=2)[
                :, :, 0
            ]
            expanded = self.expand(new, log_probs(last), model.eos)
            return expanded

        end = jax.lax.while_loop(unfinished, step, state)
        score = jnp.where(end.alive, end.token_scores.sum(-1), NEVER)
        order = jnp.argsort(-score, axis=1, stable=True)
        pick = lambda x: jnp.take_along_axis(
            x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1
        )
        return (
            NBest(pick(end.tokens), pick(end.length), pick(end.token_scores), pick(score)),
            end.calls,
            end.steps,
        )

    def expand(self, s, lp, eos):
        return getattr(self, self.reading)(s, lp, eos)

    def level(self, s, lp, eos):
        """All hypotheses that go on gain as many tokens: 1, and more while heads are sure."""
        B, K, M, V = lp.shape
        L = s.tokens.shape[2]
        C = min(K, V)
        best_lp, best_tok = jax.lax.top_k(lp, C)  # [B,K,M,C]
        row = jnp.arange(B)[:, None]
        root = jnp.broadcast_to(jnp.arange(K), (B, K))
        tokens, scores, length, ended, alive = (
            s.tokens,
            s.token_scores,
            s.length,
            s.ended,
            s.alive,
        )
        go = jnp.any(alive & ~ended, axis=1)
        for j in range(M):
            total = jnp.where(alive, scores.sum(-1), NEVER)
            if j:
                live = alive & ~ended
                sure = jnp.exp(best_lp[row, root, j, 0])  # [B,K]
                weight = jax.nn.softmax(jnp.where(live, total, NEVER), axis=1) * live
                if self.confidence == "mean":
                    conf = jnp.sum(weight * sure, axis=1)
                elif self.confidence == "best":
                    conf = jnp.take_along_axis(sure, jnp.argmax(weight, 1)[:, None], 1)[:, 0]
                else:
                    conf = jnp.min(jnp.where(live, sure, 1), axis=1)
                go = go & (conf >= self.tau) & jnp.any(live, axis=1)
            cand_lp, cand_tok = best_lp[row, root, j], best_tok[row, root, j]  # [B,K,C]
            stay = jnp.arange(C) == 0
            cand = jnp.where(
                ended[..., None],
                jnp.where(stay, total[..., None], NEVER),
                total[..., None] + cand_lp,
            )
            cand = jnp.where(alive[..., None], cand, NEVER).reshape(B, K * C)
            top, index = jax.lax.top_k(cand, K)
            parent, c = index // C, index % C
            index = jnp.where(go[:, None], index, 0)
            parent = jnp.where(go[:, None], parent, jnp.arange(K))
            take = lambda x: x[row, parent]
            was_ended = take(ended)
            adds = go[:, None] & ~was_ended
            slot = jnp.where(adds, take(length), L)
            k = jnp.arange(K)
            tokens = take(tokens).at[row, k, slot].set(cand_tok[row, parent, c], mode="drop")
            scores = take(scores).at[row, k, slot].set(cand_lp[row, parent, c], mode="drop")
            alive = jnp.where(go[:, None], top > NEVER / 2, alive)
            length = take(length) + adds
            ended = was_ended | (adds & ((cand_tok[row, parent, c] == eos) | (length >= L)))
            root = take(root)
        total = jnp.where(alive, scores.sum(-1), NEVER)
        alive &= total >= total.max(1, keepdims=True) - self.margin
        rows = (row * K + root).reshape(-1)
        return dataclasses.replace(
            s,
            tokens=tokens,
            token_scores=scores,
            length=length,
            ended=ended,
            alive=alive,
            cache=s.cache.moved(rows),
        )

    def branch(self, s, lp, eos):
        """A hypothesis follows its heads while they are sure; alternatives end its block."""
        B, K, M, V = lp.shape
        L = s.tokens.shape[2]
        C = min(K, V)
        best_lp, best_tok = jax.lax.top_k(lp, C)
        row = jnp.arange(B)[:, None]
        live = s.alive & ~s.ended
        total = jnp.where(s.alive, s.token_scores.sum(-1), NEVER)
        sure = jnp.exp(best_lp[..., 0]) >= self.tau  # [B,K,M]
        stop = (best_tok[..., 0] == eos) | (s.length[..., None] + jnp.arange(1, M + 1) >= L)
        goes = sure[..., 1:] & ~stop[..., :-1]  # may go from depth j to j+1
        reach = jnp.concatenate(
            [jnp.ones((B, K, 1), bool), jnp.cumprod(goes, axis=-1).astype(bool)], axis=-1
        )  # depth j+1 is reached
        further = jnp.concatenate([reach[..., 1:], jnp.zeros((B, K, 1), bool)], axis=-1)
        main = jnp.cumsum(best_lp[..., 0], axis=-1)
        before = main - best_lp[..., 0]
        cand = total[..., None, None] + before[..., None] + best_lp  # [B,K,M,C]
        ok = reach[..., None] & live[..., None, None]
        if self.merge == "none":
            ok &= ~(further[..., None] & (jnp.arange(C) == 0))
        length = s.length[..., None, None] + jnp.arange(1, M + 1)[:, None]
        length = jnp.broadcast_to(length, cand.shape)
        cand = jnp.where(ok, cand, NEVER).reshape(B, -1)
        length = length.reshape(B, -1)
        stay = jnp.where(s.alive & s.ended, total, NEVER)
        cand = jnp.concatenate([cand, stay], axis=1)
        length = jnp.concatenate([length, s.length], axis=1)
        rank = jnp.where(cand > NEVER / 2, cand + self.bonus * length, NEVER)
        pool = K if self.merge == "none" else min(4 * K, rank.shape[1])
        top, index = jax.lax.top_k(rank, pool)
        moves = K * M * C
        stays = index >= moves
        parent = jnp.where(stays, index - moves, index // (M * C))
        j = jnp.where(stays, 0, index // C % M)
        c = jnp.where(stays, 0, index % C)
        k = jnp.arange(pool)
        gained = jnp.where(stays, 0, j + 1)
        tokens, scores = s.tokens[row, parent], s.token_scores[row, parent]
        n = s.length[row, parent]
        for i in range(M):
            final = i == j
            slot = jnp.where(i < gained, n + i, L)
            tok = jnp.where(final, best_tok[row, parent, i, c], best_tok[row, parent, i, 0])
            tlp = jnp.where(final, best_lp[row, parent, i, c], best_lp[row, parent, i, 0])
            tokens = tokens.at[row, k, slot].set(tok, mode="drop")
            scores = scores.at[row, k, slot].set(tlp, mode="drop")
        length = n + gained
        alive = top > NEVER / 2
        ended = jnp.where(
            stays,
            True,
            (jnp.take_along_axis(tokens, jnp.maximum(length - 1, 0)[..., None], 2)[..., 0] == eos)
            | (length >= L),
        )
        if self.merge != "none":
            same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)
            same &= (length[:, :, None] == length[:, None]) & alive[:, :, None] & alive[:, None]
            earlier = jnp.tril(jnp.ones((pool, pool), bool), -1)
            if self.merge == "short":  # the route with fewest tokens of later heads counts
                g = jnp.where(same, gained[:, None, :], 99)
                first = jnp.argmin(g, axis=-1)
                keep = first == jnp.arange(pool)
                total = jnp.where(alive, scores.sum(-1), NEVER)
            else:
                dup = jnp.any(same & earlier, axis=-1)
                keep = ~dup
                total = jnp.where(alive, scores.sum(-1), NEVER)
                if self.merge == "sum":
                    merged = jax.nn.logsumexp(jnp.where(same, total[:, None, :], -jnp.inf), axis=-1)
                    gain = jnp.where(alive, merged - total, 0)
                    slot = jnp.maximum(length - 1, 0)
                    scores = scores.at[row, k, slot].add(gain)
                    total = jnp.where(alive, merged, NEVER)
            rank = jnp.where(alive & keep, total + self.bonus * length, NEVER)
            top, index = jax.lax.top_k(rank, K)
            take = lambda x: x[row, index]
            tokens, scores, length, ended, parent = map(
                take, (tokens, scores, length, ended, parent)
            )
            alive = top > NEVER / 2
        total = jnp.where(alive, scores.sum(-1) + self.bonus * length, NEVER)
        alive &= total >= total.max(1, keepdims=True) - self.margin
        rows = (row * K + parent).reshape(-1)
        return dataclasses.replace(
            s,
            tokens=tokens,
            token_scores=scores,
            length=length,
            ended=ended,
            alive=alive,
            cache=s.cache.moved(rows),
        )


@struct.dataclass
class _State:
    tokens: jax.Array
    length: jax.Array
    token_scores: jax.Array
    ended: jax.Array
    alive: jax.Array
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
