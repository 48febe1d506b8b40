"""Makes the confidences of a trained model's words true: of those at 0.8, four in five are right.

    python -m mtp_jax.calibrate --model=DIR [--data=SOURCE] [--check=SOURCE] [--picture=FILE.png]

Words are transcribed from --data (the config's dev by default), by verification and by CTC, and
logistic regression learns from them how often words are right; its weights go to
``confidence.json`` in the workdir, where `mtp_jax.load` finds them. Then words of --check (the
config's test) say how far confidences and accuracy are apart, before and after.

A Whisper or speech LLM of other programs, to whose folder nothing is written, is calibrated in the
folder that `mtp_jax.export` makes beside it.

A word is right if it is one of the reference's in the alignment with the fewest word errors, both
in lower case and without punctuation.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import write_json
from mtp_jax.flag_checks import mesh_of
from mtp_jax.paths import check_writable, check_writable_file, to_path

if TYPE_CHECKING:
    import numpy as np

    from mtp_jax.data import Source
    from mtp_jax.transcription.transcriber import Transcriber

_MODEL = cli.model_flag()
_PRETRAINED = cli.pretrained_flag()
_MESH = cli.mesh_flag()
_DATA = flags.DEFINE_string("data", None, "source to learn from; default: the config's dev")
_CHECK = flags.DEFINE_string("check", None, "source to check on; default: the config's test")
_PICTURE = flags.DEFINE_string("picture", None, "reliability picture, a PNG file")
_PICTURES = (".png", ".pdf", ".svg")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    mesh = mesh_of(_MESH.value)
    from mtp_jax.inference.model_folder import open_model_folder
    from mtp_jax.inference.released_folder import ReleasedFolder

    workdir = open_model_folder(_MODEL.value)
    if isinstance(workdir, ReleasedFolder):
        raise flags.Error(
            f"--model={_MODEL.value} is a {workdir.kind} of other programs, to which nothing is"
            f" written: calibrate what python -m mtp_jax.export --model={_MODEL.value}"
            " --output=FOLDER makes"
        )
    config = workdir.read_config()
    check_writable(workdir.path, "workdir")
    picture = to_path(_PICTURE.value) if _PICTURE.value else None
    if picture:
        if picture.suffix.lower() not in _PICTURES:
            raise flags.Error(f"--picture={picture} must end in one of {', '.join(_PICTURES)}")
        check_writable_file(picture, "picture")
    from mtp_jax.data import check_sources

    sources = _DATA.value or config.data.dev, _CHECK.value or config.data.test
    check_sources(sources, config.data, needs_text=True)
    cli.start_jax(config)
    from mtp_jax.data import open_source  # imported late: errors in flags come at once
    from mtp_jax.transcription.confidence import (
        KINDS,
        Calibration,
        expected_calibration_error,
        fit,
        uncalibrated,
    )
    from mtp_jax.transcription.loading import load

    model = load(workdir.path, mesh=cli.lay_out(mesh), pretrained=_PRETRAINED.value)
    dev, test = (
        open_source(source, config.data, model.sample_rate, needs_text=True) for source in sources
    )
    weights, checked = {}, {}
    has_ctc = model.runner.model.vocabulary.has_ctc
    for kind in (kind for kind in KINDS if has_ctc or kind != "ctc"):
        evidence, right = _words(model, dev, kind)
        weights[kind] = fit(evidence, right, kind)
        checked[kind] = _words(model, test, kind)
    calibration = Calibration(weights)
    rows, report = {}, {}
    for kind, (evidence, right) in checked.items():
        before, after = uncalibrated(evidence, kind), calibration(evidence, kind)
        rows[kind] = before, after, right
        errors = [float(expected_calibration_error(c, right)) for c in (before, after)]
        report[kind] = {
            "words": len(right),
            "right": float(right.mean()),
            "error_before": errors[0],
            "error_after": errors[1],
        }
        print(
            f"{kind}: {len(right)} words of {test.title}, {100 * right.mean():.1f} % right;"
            f" expected calibration error {100 * errors[0]:.1f} % before,"
            f" {100 * errors[1]:.1f} % after"
        )
    write_json(
        workdir.confidence,
        {"weights": calibration.weights, "learnt_from": dev.title, test.title: report},
    )
    print(f"written: {workdir.confidence}")
    if picture:
        _draw(rows, picture)
        print(f"written: {picture}")


def _words(model: Transcriber, source: Source, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Evidence float[W, 2] of all words that are recognised, and bool[W] whether each is right."""
    import numpy as np

    from mtp_jax.audio.reading import AudioError
    from mtp_jax.data import DataError
    from mtp_jax.data.text import plain
    from mtp_jax.transcription.confidence import right_words

    evidence: list[tuple[float, float]] = []
    right: list[bool] = []
    waveforms = ((i, source.waveform(i)) for i in range(len(source.utterances)))
    strategy = "ctc" if kind == "ctc" else "verify"
    for i, made in model.transcribe_all(waveforms, rate=model.sample_rate, strategy=strategy):
        if isinstance(made, AudioError):
            continue
        words = [plain(word.text) for word in made.words]
        evidence += [e for segment in made.segments for e in segment.evidence]
        right += right_words(plain(source.utterances[i].text).split(), words)
    if not any(right):
        raise DataError(f"no word of {source.title} is recognised: confidences have no meaning yet")
    return np.array(evidence), np.array(right)


def _draw(rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Accuracy by confidence; dots are as large as their share of the words."""
    import matplotlib
    import numpy as np

    from mtp_jax.transcription.confidence import reliability

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    titles = {"decoder": "words of the decoder", "ctc": "words of CTC"}
    figure, all_axes = plt.subplots(
        1, len(rows), figsize=(7.2, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (kind, (before, after, right)) in zip(all_axes[0], rows.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", lw=1)
        for confidence, label in ((before, "before"), (after, "calibrated")):
            share, mean, accuracy = np.array(reliability(confidence, right)).T
            dots = axes.plot(mean, accuracy, lw=1, label=label)
            axes.scatter(mean, accuracy, 10 + 300 * share, color=dots[0].get_color(), alpha=0.6)
        axes.set(xlabel="confidence", title=titles[kind], xlim=(0, 1.03), ylim=(0, 1.05))
        axes.grid(alpha=0.3)
    all_axes[0][0].set_ylabel("share of right words")
    all_axes[0][0].legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(cli.run(main))
