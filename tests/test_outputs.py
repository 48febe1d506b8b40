"""Which recordings a command line stands for, and which of their texts are finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtp_jax.audio.folders import shown
from mtp_jax.transcription import marks, outputs
from mtp_jax.transcription.finding import Task, find
from mtp_jax.transcription.marks import Model, mark_path, read_mark
from mtp_jax.transcription.outputs import Clash, State
from mtp_jax.transcription.results import Transcript
from tests.test_transcription import transcript

MODEL = Model("a model", "Verify()")
TEXT = transcript(("a", 0, 1))


@pytest.fixture
def task(tmp_path) -> Task:
    (tmp_path / "a.wav").write_bytes(b"sound")
    return Task(tmp_path / "a.wav", Path("sub/a"))


def planned(task: Task, folder: Path, model: Model = MODEL, overwrite: bool = False):
    return outputs.plan([task], folder, ["txt"], model, overwrite)


def finish(task: Task, folder: Path, model: Model = MODEL, text: Transcript = TEXT) -> Path:
    [job] = planned(task, folder, model).jobs
    job.begin()
    outputs.write(text, job, model)
    return folder / "sub" / "a.txt"


def states(plan: outputs.Plan) -> set[State]:
    [job] = [*plan.jobs, *plan.finished]
    return job.states


def test_names_that_would_collide_are_kept_apart(tmp_path):
    for name in ("x/talk.wav", "y/talk.wav", "x/talk.mp3", "x/other.wav", "y/OTHER.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    arguments = [str(tmp_path / name) for name in ("x/talk.wav", "y/talk.wav", "x/*")]
    found = find(arguments)
    assert not found.missing
    whole = [f"{tmp_path}/{d}/talk.wav".lstrip("/") for d in "xy"]
    assert [str(task.name) for task in found.tasks] == [*whole, "other", "talk.mp3"]
    cased = find([str(tmp_path / "[xy]/o*"), str(tmp_path / "y/O*")]).tasks
    whole = [f"{tmp_path}/{name}".lstrip("/") for name in ("x/other.wav", "y/OTHER.wav")]
    assert [str(task.name) for task in cased] == whole  # one file where case does not count
    assert shown("a\nb\udcff") == "a\\nb\\xff"


def test_what_a_folder_holds_and_what_is_left_out(tmp_path):
    real, tree = tmp_path / "real", tmp_path / "tree"
    for file in (
        real / "three.WAV",
        tree / "one.mpga",
        tree / "sub" / "two.3gp",
        tree / "notes.txt",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tree / ".hidden").mkdir()
    for name in ("._one.wav", ".hidden/x.wav"):
        (tree / name).touch()
    (tree / "linked").symlink_to(real)
    (tree / "loop").symlink_to(tmp_path / "tree")
    (tree / "broken.wav").symlink_to("nowhere")
    found = find([str(tree)])
    assert [str(task.name) for task in found.tasks] == ["one", "sub/two", "linked/three"]
    assert found.missing == [f"{tree}/broken.wav is a link that leads nowhere"]
    assert found.left_out == "1 (notes.txt) left out: without the suffix of a recording"
    long = find(["x" * 300])
    assert long.missing == [f"{'x' * 300} cannot be read (File name too long)"]
    assert not find(["~nobody-of-this-name/a.wav"]).tasks


def test_a_text_is_finished_if_it_is_of_this_recording_model_and_strategy(task, tmp_path):
    out = tmp_path / "out"
    file = finish(task, out)
    assert file.read_text() == "a\n"
    assert states(planned(task, out)) == {State.FINISHED}
    os.utime(task.path, (5, 5))  # an older date, the same content
    assert states(planned(task, out)) == {State.FINISHED}
    moved = tmp_path / "moved"
    out.rename(moved)
    assert states(planned(task, moved)) == {State.FINISHED}
    for other in (Model("another", "Verify()"), Model("a model", "Threshold(tau=0.5)")):
        assert states(planned(task, moved, other)) == {State.STALE}
    before = task.path.stat()
    task.path.write_bytes(b"noise")  # as long
    os.utime(task.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert states(planned(task, moved)) == {State.STALE}
    finish(task, moved)
    assert states(planned(task, moved)) == {State.FINISHED}
    (moved / "sub" / "a.txt").unlink()
    assert states(planned(task, moved)) == {State.MISSING}


def test_what_this_command_did_not_write_stays(task, tmp_path):
    out = tmp_path / "out"
    file = finish(task, out)
    file.write_text("mended by hand\n")
    assert states(planned(task, out)) == {State.EDITED}
    [said] = planned(task, out, Model("another", "Verify()")).clashes
    assert "was changed since it was written" in said
    mark_path(file).write_text("{")  # damaged: as if there were none
    [said] = planned(task, out).clashes
    assert "was not written by this command" in said and "--overwrite" in said
    assert states(planned(task, out, overwrite=True)) == {State.MISSING}
    file.unlink()
    file.mkdir()
    [said] = planned(task, out, overwrite=True).clashes
    assert "is a folder" in said


def test_killed_at_any_moment_it_is_done_again(task, tmp_path, monkeypatch):
    """Between any two files that are written, of the first output and of one that replaces it."""
    out, real = tmp_path / "out", marks.write_whole

    class Killed(BaseException):
        pass

    other = Model("another", "Verify()"), transcript(("b", 0, 1))
    for model, text in ((MODEL, TEXT), other):
        for survives in (0, 1):
            left = [survives]

            def write_whole(path, content, left=left):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                real(path, content)

            monkeypatch.setattr(marks, "write_whole", write_whole)
            with pytest.raises(Killed):
                finish(task, out, model, text)
            plan = planned(task, out, model)
            assert not plan.clashes and not plan.finished
        monkeypatch.setattr(marks, "write_whole", real)
        finish(task, out, model, text)
        assert states(planned(task, out, model)) == {State.FINISHED}


def test_another_process_may_write_the_same_name_meanwhile(task, tmp_path):
    other = Task(tmp_path / "b.wav", task.name)
    other.path.write_bytes(b"other")
    [job] = planned(task, tmp_path / "out").jobs
    job.begin()
    finish(other, tmp_path / "out")
    with pytest.raises(Clash, match=r"of another recording, .*b\.wav"):
        outputs.write(TEXT, job, MODEL)
    [job] = planned(other, tmp_path / "two").jobs
    job.begin()
    other.path.write_bytes(b"longer than it was")
    with pytest.raises(Clash, match=r"b\.wav changed while it was read"):
        outputs.write(TEXT, job, MODEL)


def test_names_that_no_disk_takes_and_names_that_only_just_do(tmp_path):
    out = tmp_path / "out"
    for name, fits in (("音" * 82, True), ("x" * 251, True), ("x" * 252, False)):
        task = Task(tmp_path / "a.wav", Path(name))
        task.path.write_bytes(b"sound")
        plan = planned(task, out)
        assert len(plan.jobs) == fits
        if fits:
            plan.jobs[0].begin()
            outputs.write(TEXT, plan.jobs[0], MODEL)
            assert read_mark(out / f"{name}.txt") is not None
            assert states(planned(task, out)) == {State.FINISHED}
        else:
            assert "File name too long" in plan.clashes[0]


def test_outputs_of_one_run_that_exclude_each_other(tmp_path):
    for name in ("a.wav", "a.txt/b.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    tasks = find([str(tmp_path / "in")]).tasks
    plan = outputs.plan(tasks, tmp_path / "out", ["txt"], MODEL, False)
    assert [str(job.task.name) for job in plan.jobs] == ["a"]
    assert "would both be written" in plan.clashes[0]
