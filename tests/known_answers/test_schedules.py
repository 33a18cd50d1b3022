"""The learning rates of RCCR's and of SPCL's release."""

from tests.known_answers.reader import answer
from tests.support.small import shipped
from udaseg.recipe.stages import stages_of
from udaseg.training.optimizer import learning_rate_factor

BASE, POWER = 2.5e-4, 0.9


def test_the_rate_falls_as_in_rccr():
    case, recipe = answer("schedules/learning_rate"), shipped("gta5_cityscapes/rccr_release")
    assert (recipe.optimizer.lr, recipe.optimizer.power, recipe.steps) == (BASE, POWER, 250_000)
    steps = case.inputs["of_250000"].tolist()
    case.expect("rccr", [BASE * _factor(recipe, step) for step in steps])


def test_the_rate_falls_as_in_spcl_which_stops_early():
    case, recipe = answer("schedules/learning_rate"), shipped("gta5_cityscapes/spcl_release")
    stage = stages_of(recipe)[0]
    decay = (stage.end - stage.begin) / stage.schedule_stop
    steps = case.inputs["step"].tolist()
    case.expect("spcl", [BASE * _factor(recipe, step, decay) for step in steps])


def test_releases_that_stop_early_decay_over_the_steps_that_they_were_set_to():
    for method, decay in (("advent", 250_000), ("minent", 250_000), ("fda", 150_000)):
        recipe = shipped(f"gta5_cityscapes/{method}_release")
        (stage,) = stages_of(recipe)
        assert abs(stage.end / stage.schedule_stop - decay) < 0.1


def _factor(recipe, step, decay=None):
    decay = recipe.steps if decay is None else decay
    return learning_rate_factor(step, decay, power=recipe.optimizer.power, warmup=0)
