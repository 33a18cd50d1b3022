"""The public door of the networks: every name has an example that runs."""

import doctest
import inspect
import subprocess
import sys

import pytest

import udaseg.models


@pytest.mark.parametrize("name", udaseg.models.__all__)
def test_the_example_in_its_docstring_runs(name):
    thing = getattr(udaseg.models, name)
    examples = doctest.DocTestParser().get_doctest(
        inspect.getdoc(thing), {}, name, inspect.getsourcefile(thing), 0
    )
    assert examples.examples
    runner = doctest.DocTestRunner()
    said = []
    runner.run(examples, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_door_has_the_names_it_says_and_no_others():
    assert dir(udaseg.models) == udaseg.models.__all__
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = udaseg.models.Segmentor


@pytest.mark.slow
def test_networks_are_imported_without_torchvision_and_timm():
    code = (
        "import sys, udaseg.models; assert 'torch' not in sys.modules; "
        "[getattr(udaseg.models, name) for name in udaseg.models.__all__]; "
        "assert not {'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
