"""Guards of the loop: drop bad steps, restore bad states, report out-of-memory errors."""

import copy
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.methods.test_host import Reads
from tests.methods.test_self_training import _batch, _objective
from tests.support.injections import (
    campaign,
    change_reports,
    differing,
    everything,
    inject,
    not_finite,
    plain_objective,
    plainly_trained,
    rich_objective,
    tiny_fit,
    trained,
)
from udaseg.data.labels.classes import IGNORE
from udaseg.errors import DivergedError
from udaseg.methods.views import CUTMIX, SOURCE
from udaseg.signals import StopSignal
from udaseg.training.guards import Guard
from udaseg.training.loop import _clip_gradient
from udaseg.training.memory import FirstStepOutOfMemory, OutOfMemory
from udaseg.training.step import compute_gradients, merge_reports, split_batch

NAN, INF = float("nan"), float("inf")


def test_nan_in_any_place_of_a_step_leaves_no_trace():
    """Eleven places. The state is compared bit for bit with a plain loop without that step."""
    trials, failed = campaign(seeds=[0], steps=3, at=[1], values=[NAN])
    assert (trials, failed) == (11, [])


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_run_without_a_bad_step_is_the_plain_loop_bit_for_bit(clip_norm):
    guarded, plain = tiny_fit(steps=3, clip_norm=clip_norm), tiny_fit(steps=3)
    guard = Guard(guarded)
    trained(guarded, guard=guard)
    if clip_norm is not None:
        real = plain.optimizer.step

        def step():
            torch.nn.utils.clip_grad_norm_(plain.objective.student.parameters(), clip_norm)
            real()

        plain.optimizer.step = step
    plainly_trained(plain)
    assert differing(everything(guarded), everything(plain)) == []
    assert guard.counts == ({} if clip_norm is None else {"clipped_steps": 3})


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, same, other = (tiny_fit(steps=3, seed=seed) for seed in (0, 0, 1))
    for run in (one, same, other):
        trained(run)
    assert differing(everything(one), everything(same)) == []
    assert differing(everything(one), everything(other)) != []


def test_the_state_after_a_dropped_step_is_the_state_before_it():
    run = tiny_fit(steps=4)
    inject(run, "loss", 2)
    states = {}
    trained(run, on_step=lambda done, _: states.update({done: everything(run)}))
    assert differing(states[2], states[3]) == []
    assert differing(states[3], states[4]) != []


def test_bad_steps_in_a_row_end_the_run_with_the_files_of_the_last(caplog):
    run = tiny_fit(objective=plain_objective(), max_bad_steps=3)
    for step in (1, 3, 4, 5):
        inject(run, "loss", step)
    dropped, states = [], {}
    guard = Guard(run, on_drop=dropped.append)
    with pytest.raises(DivergedError, match=r"step 6: .*3 steps") as error:
        trained(run, guard=guard, on_step=lambda done, _: states.update({done: everything(run)}))
    assert "source/5.png" in str(error.value)
    assert "target/5.png" in str(error.value)
    assert [(drop.step, drop.in_a_row) for drop in dropped] == [(2, 1), (4, 1), (5, 2), (6, 3)]
    assert dropped[0].files == ("source/1.png", "target/1.png")
    assert guard.counts == {"dropped_steps": 4}
    assert differing(everything(run), states[3]) == []
    assert "step dropped, its changes undone" in caplog.text


def test_damage_that_comes_back_with_the_same_steps_ends_the_run():
    run = tiny_fit(objective=plain_objective())
    first = next(run.objective.parameters())

    def damage(step):
        if step == 3:
            first.data.view(-1)[0] = NAN

    run.batches.before.append(damage)
    guard = Guard(run)
    with pytest.raises(DivergedError, match=r"step 3: .*again since step 0"):
        trained(run, guard=guard)
    assert guard.counts == {"returns_to_a_good_state": 1}


def test_two_accidents_go_back_to_the_same_copy():
    """Each is detected at the next step, and no copy is made in between."""
    objectives = [plain_objective(), plain_objective()]
    whole, run = (
        tiny_fit(objective=objective, steps=9, checkpoint_every=5) for objective in objectives
    )
    plainly_trained(whole)
    for step in (5, 7):
        inject(run, "optimiser state", step)
    back = []
    trained(run, guard=Guard(run, on_rollback=back.append))
    assert back == [5, 5]
    assert differing(everything(run), everything(whole)) == []


def test_a_state_that_is_bad_from_the_start_is_told():
    run = tiny_fit(objective=plain_objective())
    next(run.objective.parameters()).data.fill_(NAN)
    with pytest.raises(DivergedError, match=r"step 0: .*not finite"):
        trained(run)


def test_damage_that_no_loss_shows_is_found_before_a_checkpoint():
    """Infinite second moments only freeze a weight; the loss stays finite."""
    whole, run = tiny_fit(steps=6), tiny_fit(steps=6, checkpoint_every=4)
    plainly_trained(whole)
    first = next(run.objective.student.parameters())
    done = []

    def damage(step):
        if step == 2 and not done:
            run.optimizer.state[first]["exp_avg_sq"].fill_(INF)
            done.append(step)

    run.batches.before.append(damage)
    steps, guard = [], Guard(run)
    trained(run, guard=guard, on_step=lambda number, _: steps.append(number))
    assert steps == [1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert guard.counts == {"returns_to_a_good_state": 1}
    assert differing(everything(run), everything(whole)) == []


def test_damage_in_the_last_step_is_found_before_the_end():
    whole, run = (tiny_fit(objective=plain_objective(), steps=4) for _ in range(2))
    plainly_trained(whole)
    inject(run, "optimiser state", 3)
    assert trained(run) == 4
    assert differing(everything(run), everything(whole)) == []


def test_going_back_tells_the_number_of_steps_and_stops_there_when_a_signal_came():
    run = tiny_fit(steps=6, checkpoint_every=2)
    back, states = [], {}
    guard = Guard(run, on_rollback=back.append)
    stop = StopSignal()

    def on_step(done, _):
        states.setdefault(done, everything(run))
        if done == 3:
            stop.number = 15
            # damage in the last step before the stop
            next(run.objective.student.parameters()).data.fill_(NAN)

    assert trained(run, on_step=on_step, stop=stop, guard=guard) == 2
    assert back == [2]
    assert differing(everything(run), states[2]) == []


def test_a_spike_is_clipped_and_counted():
    for clip_norm in (None, 1.0):
        run = tiny_fit(
            objective=plain_objective(), steps=16, kind="sgd", lr=1e-3, clip_norm=clip_norm
        )
        model = run.objective
        change_reports(
            model,
            lambda out, run=run: (
                replace(out, total=out.total * 1e4) if run.batches.step == 13 else out
            ),
        )
        moved, guard = [], Guard(run)
        weights = [part for part in model.parameters() if part.requires_grad]
        before = [torch.cat([part.detach().flatten() for part in weights])]

        def on_step(done, _, before=before, moved=moved, weights=weights):
            now = torch.cat([part.detach().flatten() for part in weights])
            moved.append(float((now - before[0]).norm()))
            before[0] = now

        trained(run, guard=guard, on_step=on_step)
        assert guard.counts["gradient_spikes"] == 1
        assert guard.counts["clipped_steps"] >= (clip_norm is not None)
        spike, usual = moved[13], sorted(moved[:13])[6]
        assert spike < 5 * usual if clip_norm is not None else spike > 100 * usual


def test_a_step_that_is_bad_on_another_rank_is_dropped_here_too():
    run = tiny_fit(objective=plain_objective(), steps=3)

    def join_ranks(loss):  # the gradient of the other rank is NaN
        return loss * (NAN if run.batches.step == 1 else 1)

    guard = Guard(replace(run, join_ranks=join_ranks))
    trained(guard.setup, guard=guard)
    assert guard.counts == {"dropped_steps": 1}
    plain = tiny_fit(objective=plain_objective(), steps=3)
    plainly_trained(plain, without={1})
    assert differing(everything(run), everything(plain)) == []


def test_views_that_no_loss_counts_are_looked_at():
    """Cells without confidence are not in the loss, but a memory would store them."""
    run = tiny_fit()
    run.objective.regularizers["regional"].min_confidence = 1.1
    inject(run, "teacher projection", 2)
    guard = Guard(run)
    trained(run, guard=guard)
    assert guard.counts == {"dropped_steps": 1}
    assert not_finite(everything(run)) == []


def test_a_teacher_that_is_not_finite_is_noticed_where_no_loss_shows_it():
    """A pixel with probability NaN is not confident, so the loss ignores it and stays finite."""
    run, plain = (tiny_fit(objective=_objective(), steps=3) for _ in range(2))
    inject(run, "teacher output", 1)
    guard = Guard(run)
    trained(run, guard=guard)
    assert guard.counts == {"dropped_steps": 1}
    plainly_trained(plain, without={1})
    assert differing(everything(run), everything(plain)) == []


def test_a_good_step_waits_for_the_device_once_only():
    run = tiny_fit()
    guard = Guard(run)
    with Reads() as reads:
        guard.begin_step(0)
        compute_gradients(run, _batch())
        assert guard.accepts(_clip_gradient(list(run.objective.student.parameters()), 1.0).item())
        guard.end_step(1)
    # on the CPU the regional loss selects rows by index; on a GPU it does not
    assert [read for read in reads.found if "nonzero" not in str(read)] == [
        torch.ops.aten._local_scalar_dense.default
    ]


# -- out of memory


def _full(run, at, *, where="forward"):
    done = []

    def fill(*_):
        if run.batches.step == at and not done:
            done.append(at)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if where == "forward":
        run.objective.student.head.register_forward_hook(fill)
    elif where == "after":
        run.objective.regularizers["regional"].update = fill
    else:
        run.optimizer.step = fill


@pytest.mark.parametrize("where", ["forward", "optimizer"])
def test_memory_that_runs_out_at_the_first_step_leaves_the_start_as_it_was(where):
    run = tiny_fit()
    before = everything(run)
    _full(run, 0, where=where)
    with pytest.raises(FirstStepOutOfMemory, match="Tried to allocate"):
        trained(run)
    assert differing(everything(run), before) == []


@pytest.mark.parametrize(("where", "done"), [("forward", 3), ("after", 2), ("on_step", 4)])
def test_memory_that_runs_out_later_leaves_a_whole_state(where, done):
    run, states = tiny_fit(checkpoint_every=2), {}

    def on_step(number, _):
        states[number] = everything(run)
        if where == "on_step" and number == 4:
            raise torch.OutOfMemoryError("while scoring")

    if where != "on_step":
        _full(run, 3, where=where)
    with pytest.raises(OutOfMemory) as error:
        trained(run, on_step=on_step)
    assert error.value.done == done
    assert error.value.exit_code == 6
    assert differing(everything(run), states[done]) == []


def test_memory_that_runs_out_after_going_back_is_no_first_step_that_does_not_fit():
    """The restored state already includes steps: starting again would repeat them."""
    run, states, back = tiny_fit(checkpoint_every=2), {}, []
    assert inject(run, "optimiser state", 3) == []

    def full(*_):
        if back:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    run.objective.student.head.register_forward_hook(full)
    with pytest.raises(OutOfMemory) as error:
        trained(
            run,
            on_step=lambda number, _: states.setdefault(number, everything(run)),
            guard=Guard(run, on_rollback=back.append),
        )
    assert back == [error.value.done] == [2]
    assert differing(everything(run), states[2]) == []


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_each_way_to_say_that_memory_is_used_up_is_understood(said):
    run = tiny_fit(objective=plain_objective())

    def full(*_):
        raise torch.AcceleratorError(said) if "CUDA error" in said else RuntimeError(said)

    run.objective.student.head.register_forward_hook(full)
    with pytest.raises(FirstStepOutOfMemory) as error:
        trained(run)
    assert str(error.value) == said.partition("\n")[0]


def test_other_runtime_errors_stay_what_they_are():
    run = tiny_fit(objective=plain_objective())
    run.objective.student.head.register_forward_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        trained(run)


# -- micro-batches


def test_parts_hold_each_image_once_and_draw_by_themselves():
    batch = _batch()
    parts = split_batch(batch, 2)
    assert [part.seed for part in parts] != [batch.seed] * 2
    assert parts[0].seed != parts[1].seed
    for name in ("source_images", "source_labels", "target_images"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name))
    with pytest.raises(ValueError, match="2 source_images cannot be split evenly into 3"):
        split_batch(batch, 3)


def test_without_batch_statistics_the_gradient_of_the_parts_is_that_of_the_batch():
    """Otherwise batch norm and the number of labelled pixels differ; here both are the same."""
    gradients = []
    for micro_batches in (1, 2):
        run = tiny_fit(objective=plain_objective(), micro_batches=micro_batches)
        run.objective.eval()
        batch = _batch()
        assert (batch.source_labels == IGNORE).sum(1).unique().numel() <= 2
        report = compute_gradients(run, batch)
        gradients.append([report.total, *(part.grad for part in run.objective.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_teacher_and_memories_learn_once_a_step_from_all_parts():
    whole, parts = tiny_fit(steps=1), tiny_fit(steps=1, micro_batches=2)
    trained(whole)
    trained(parts)
    one, other = (run.objective.regularizers["regional"].bank for run in (whole, parts))
    assert one.cursor == other.cursor == 1
    reports = [parts.objective(part) for part in split_batch(_batch(), 2)]
    views = merge_reports(reports).views
    assert views[SOURCE].features.shape[0] == 2
    assert torch.equal(
        views[CUTMIX].square, torch.cat([report.views[CUTMIX].square for report in reports])
    )
    assert torch.equal(
        merge_reports(reports).predicted_counts,
        torch.stack([r.predicted_counts for r in reports]).sum(0),
    )


def test_a_run_in_parts_resumes_bit_for_bit():
    whole, half = (tiny_fit(steps=5, micro_batches=2) for _ in range(2))
    trained(whole)
    kept = {}

    def on_step(done, _):
        if done == 3:
            state = half.objective.state_dict(), half.optimizer.state_dict()
            kept["state"] = copy.deepcopy(state)

    trained(half, on_step=on_step)
    resumed = tiny_fit(steps=5, micro_batches=2)
    resumed.objective.load_state_dict(kept["state"][0])
    resumed.optimizer.load_state_dict(kept["state"][1])
    trained(resumed, first=3)
    assert differing(everything(resumed), everything(whole)) == []


def test_a_batch_that_cannot_be_divided_is_made_whole():
    runs = [tiny_fit(steps=2, micro_batches=parts) for parts in (1, 3)]
    for run in runs:
        trained(run)
    assert differing(*map(everything, runs)) == []


def test_counts_are_plain_numbers_by_name():
    run = tiny_fit(objective=plain_objective(), steps=2)
    counts = Counter(dropped_steps=2)
    inject(run, "loss", 0)
    trained(run, guard=Guard(run, counts=counts))
    assert json.loads(json.dumps(counts)) == {"dropped_steps": 3}


def test_the_rich_objective_has_a_bank_and_prototypes():
    names = set(rich_objective().state_dict())
    assert {
        "regularizers.regional.bank.embeddings",
        "regularizers.prototypes.prototypes.means",
    } <= names
