"""The one list of decoding strategies: a strategy is one file and one entry here.

Everything that offers strategies reads this list: checks of the config, evaluate, transcribe, serve
and its page, compile, MWER training, tables and pictures. It brings no JAX until a strategy is
made, so that ``--help`` and config files stay fast.

A strategy of one's own is registered before it is asked for, for instance in the config file:

    registry.register(
        registry.Entry(
            name="my_search",
            summary="What it does, in a sentence for people who listen to the result.",
            variants=lambda options: [registry.Variant(MySearch(options.beams))],
        )
    )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_jax.decoding.interface import Strategy


@dataclasses.dataclass(frozen=True)
class Options:
    """What strategies are made from; each takes what it needs.

    Attributes:
        heads: M of the model.
        tau: of threshold decoding.
        draft_width: S, tokens per call where drafts are read off a text.
        beams: K.
        rounds: of prefix beam search, at most.
        length_power: hypotheses are ranked by log-probability / length ** power.
    """

    heads: int = 1
    tau: float = 0.9
    draft_width: int = 16
    beams: int = 8
    rounds: int = 3
    length_power: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a strategy: one row of the table.

    Attributes:
        strategy: what decodes.
        shown: options that the table shows.
        width: tokens per call; the output of an exact strategy equals greedy's of this width.
    """

    strategy: Strategy
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    width: int = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A strategy.

    Attributes:
        name: on command lines, in configs and requests.
        summary: a sentence for people.
        variants: from options, the rows of the table; the first is what the name alone means.
        calls_decoder: False for CTC alone; its tokens are labels of CTC.
        needs_heads: with M = 1 it would be greedy again.
        needs_ctc_hypothesis: drafts the CTC hypothesis in the decoder's tokens, or the text of
            another model in its place.
        makes_nbest: it gives a list of hypotheses, and can feed MWER training.
        exact: its output is greedy's, token for token.
        takes_tau: it has a threshold that a request may set.
        adaptive: how wide its calls are depends on what they cost on the devices at hand.
        marker, color: of its points in pictures, as matplotlib names them.
    """

    name: str
    summary: str
    variants: Callable[[Options], Sequence[Variant]]
    calls_decoder: bool = True
    needs_heads: bool = False
    needs_ctc_hypothesis: bool = False
    makes_nbest: bool = False
    exact: bool = False
    takes_tau: bool = False
    adaptive: bool = False
    marker: str = "^"
    color: str = "tab:red"

    @property
    def drafts_text(self) -> bool:
        """Whether it drafts by a text, of CTC or of another model, wherever there is one."""
        return self.needs_ctc_hypothesis or self.adaptive

    def make(self, options: Options) -> Strategy:
        """The strategy that the name alone means."""
        return self.variants(options)[0].strategy


_entries: dict[str, Entry] = {}


def register(entry: Entry) -> None:
    """Adds a strategy.

    Raises:
        ValueError: there is one of this name.
    """
    if entry.name in _entries:
        raise ValueError(f"there is a strategy {entry.name} already: choose another name")
    _entries[entry.name] = entry


def unregister(name: str) -> None:
    """Removes a strategy that was registered."""
    del _entries[name]


def get(name: str) -> Entry:
    """The strategy of that name.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    if name not in _entries:
        raise ValueError(f"strategy {name!r} is not one of {', '.join(_entries)}")
    return _entries[name]


def names(select: Callable[[Entry], bool] = lambda entry: True) -> tuple[str, ...]:
    """Names of the strategies that `select` accepts; of all by default."""
    return tuple(name for name, entry in _entries.items() if select(entry))


def usable(has_ctc_hypothesis: bool, has_ctc: bool = True) -> tuple[str, ...]:
    """Names of the strategies that a model can be decoded with.

    Args:
        has_ctc_hypothesis: whether there is one in the decoder's tokens, or another model's text.
        has_ctc: whether there is a CTC head.
    """

    def fits(entry: Entry) -> bool:
        drafts = has_ctc_hypothesis or not entry.needs_ctc_hypothesis
        return drafts and (has_ctc or entry.calls_decoder)

    return names(fits)


def _ctc(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.ctc_greedy import CtcGreedy

    return [Variant(CtcGreedy())]


def _auto(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.auto import Auto

    return [Variant(Auto(options.draft_width))]


def _greedy(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.greedy import Greedy

    # As everyone runs it, and M tokens wide, which verification must equal to the last bit.
    widths = sorted({1, options.heads})
    return [Variant(Greedy(width), {"width": width}, width) for width in widths]


def _threshold(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.threshold import Threshold

    return [Variant(Threshold(options.tau), {"tau": options.tau}, options.heads)]


def _verify(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.verify import Verify

    return [Variant(Verify(), {}, options.heads)]


def _verify_ctc(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.verify import Verify

    width = options.draft_width
    return [Variant(Verify(width), {"width": width}, width)]


def _verify_joint(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.verify import Verify

    width = options.draft_width
    return [Variant(Verify(width, joint=True), {"width": width}, width)]


def _beam(options: Options) -> Sequence[Variant]:
    from mtp_jax.decoding.beam import BeamSearch

    return [Variant(BeamSearch(options.beams, options.length_power), {"beams": options.beams})]


def _prefix_beam(options: Options) -> Sequence[Variant]:
    return _branching(options, ctc_width=0)


def _prefix_beam_ctc(options: Options) -> Sequence[Variant]:
    return _branching(options, ctc_width=options.draft_width)


def _branching(options: Options, ctc_width: int) -> Sequence[Variant]:
    from mtp_jax.decoding.kbest import PrefixBeam

    o = options
    search = PrefixBeam(o.beams, o.length_power, o.draft_width, o.rounds, ctc_width)
    return [Variant(search, {"beams": o.beams}, o.heads)]


for _entry in (
    Entry(
        "ctc",
        "The encoder's own text: no decoder call at all.",
        _ctc,
        calls_decoder=False,
        marker="x",
        color="tab:brown",
    ),
    Entry(
        "greedy",
        "One decoder call per token: what the others are measured against.",
        _greedy,
        exact=True,
        marker="s",
        color="black",
    ),
    Entry(
        "auto",
        "Greedy's text: all drafts that the model has, as long as they save time.",
        _auto,
        exact=True,
        adaptive=True,
        marker="h",
        color="tab:gray",
    ),
    Entry(
        "threshold",
        "Several tokens per call, as long as the heads are confident; the text may differ from"
        " greedy's.",
        _threshold,
        needs_heads=True,
        takes_tau=True,
        marker="o",
        color="tab:blue",
    ),
    Entry(
        "verify",
        "The heads draft several tokens, the next call checks them: greedy's text in fewer calls.",
        _verify,
        needs_heads=True,
        exact=True,
        marker="D",
        color="tab:green",
    ),
    Entry(
        "verify_ctc",
        "The encoder's text is the draft, the decoder checks it: greedy's text in fewer calls.",
        _verify_ctc,
        needs_ctc_hypothesis=True,
        exact=True,
        marker="P",
        color="tab:olive",
    ),
    Entry(
        "verify_joint",
        "The encoder's text is the draft, and behind a difference the heads': greedy's text in the"
        " fewest calls.",
        _verify_joint,
        needs_heads=True,
        needs_ctc_hypothesis=True,
        exact=True,
        marker="p",
        color="tab:cyan",
    ),
    Entry(
        "beam",
        "Beam search: several hypotheses side by side, one token per call.",
        _beam,
        makes_nbest=True,
        marker="v",
        color="tab:purple",
    ),
    Entry(
        "prefix_beam",
        "A k-best search that branches from known hypotheses: several texts in fewer calls.",
        _prefix_beam,
        makes_nbest=True,
        marker="*",
        color="tab:purple",
    ),
    Entry(
        "prefix_beam_ctc",
        "The same search, its first text drafted by the encoder: fewer calls still.",
        _prefix_beam_ctc,
        needs_ctc_hypothesis=True,
        makes_nbest=True,
        marker="X",
        color="tab:pink",
    ),
):
    register(_entry)
